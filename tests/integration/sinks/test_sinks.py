"""Sinks: what each real package has stored afterwards is what the record says, step for step."""

from __future__ import annotations

import importlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gradclip import GradclipError, GradclipWarning, PolicyError, Run, read_run
from gradclip.record import RecordWriter
from gradclip.sinks import KINDS, SCALARS, Sink, open_sink
from gradclip.torch import Clipper, Recorder, attach, record
from integration.training import ReadsBack, decided_on_device, net, scripted_gradients

Stored = dict[str, dict[int, float]]
"""Name → step → value."""


def train(path: Path, sinks: Any, steps: int = 7, **options: Any) -> Run:
    """Record a training of which one step is skipped and some are clipped; return the record."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    clipper = attach(optimizer, "norm:0.7", model=model)
    options = {"optimizer": optimizer, "every": 3, "loss": lambda: 1.5 + clipper.steps} | options
    with record(clipper, path, sinks=sinks, **options):
        for step in range(steps):
            scripted_gradients(model, step, math.nan if step == 4 else None)
            optimizer.step()
    clipper.detach()
    return read_run(path)


def expected(run: Run) -> Stored:
    """Return what a sink must have, from the record and nothing of `gradclip.sinks`."""
    columns = {
        "grad_norm/pre": "norm",
        "grad_norm/post": "clipped_norm",
        "grad_norm/limit": "limit",
        "clip/coef": "coef",
        "clip/removed": "removed",
        "clip/cosine": "cosine",
        "loss": "loss",
        "lr": "lr",
    }
    steps = run.steps.tolist()
    stored = {
        name: {
            step: float(value)
            for step, value, seen in zip(steps, run.column(key), run.seen(key), strict=True)
            if seen
        }
        for name, key in columns.items()
    }
    clipped = np.cumsum(run.column("clipped"))
    skipped = np.cumsum(run.column("skipped"))
    bad = np.cumsum(~np.isfinite(run.column("norm")))
    stored["clip/rate"] = dict(zip(steps, clipped / run.steps, strict=True))
    stored["clip/skipped"] = dict(zip(steps, skipped, strict=True))
    stored["clip/nonfinite"] = dict(zip(steps, bad, strict=True))
    return stored


def check(stored: Stored, run: Run, tolerance: float = 0.0) -> None:
    wanted = expected(run)
    assert set(wanted) == set(SCALARS)
    assert {name: sorted(values) for name, values in stored.items()} == {
        name: sorted(values) for name, values in wanted.items()
    }
    for name, values in wanted.items():
        for step, value in values.items():
            np.testing.assert_allclose(stored[name][step], value, rtol=tolerance, err_msg=name)


def gather(rows: Any) -> Stored:
    stored: Stored = {}
    for step, values in rows:
        for name, value in values.items():
            stored.setdefault(name, {})[step] = value
    return stored


class Logger:
    """A logger of somebody's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


# ---- Anything that takes numbers


def test_what_the_training_was(tmp_path: Path) -> None:
    """Else the other tests would compare little."""
    run = train(tmp_path / "r", ())
    assert 0 < run.column("clipped").sum() < 6
    assert run.column("skipped").tolist() == [0, 0, 0, 0, 1, 0, 0]


def test_an_object_with_log_gets_each_step_once_and_in_order(tmp_path: Path) -> None:
    logger = Logger()
    run = train(tmp_path / "r", [logger])
    assert [step for step, _ in logger.rows] == [1, 2, 3, 4, 5, 6, 7]
    check(gather(logger.rows), run)


def test_a_batch_goes_when_it_is_written(tmp_path: Path) -> None:
    logger, had = Logger(), []
    train(tmp_path / "r", [logger], loss=lambda: had.append(len(logger.rows)))
    assert had == [0, 0, 0, 3, 3, 3, 6]
    assert len(logger.rows) == 7


def test_a_sink_costs_no_read_of_the_device(tmp_path: Path) -> None:
    model = net()
    clipper = Clipper(model.named_parameters(), "norm:0.5", max_skips=99)
    logger = Logger()
    with RecordWriter(tmp_path / "r", every=10, sinks=[logger]) as writer:
        Recorder(writer, clipper)
        with decided_on_device():
            for step in range(9):
                scripted_gradients(model, step)
                with ReadsBack() as reads:
                    clipper.clip_()
                assert reads.count == 0
        assert logger.rows == []
        scripted_gradients(model, 9)
        clipper.clip_()
    assert len(logger.rows) == 10


def test_an_object_with_log_metrics(tmp_path: Path) -> None:
    logger = Logger()
    run = train(tmp_path / "r", [SimpleNamespace(log_metrics=logger.log)])
    check(gather(logger.rows), run)


def test_names_of_further_optimizers_differ(tmp_path: Path) -> None:
    logger = Logger()
    with RecordWriter(tmp_path / "r", sinks=[logger]) as writer:
        writer.step(step=1, optimizer=0, norm=1.0, clipped=True)
        writer.step(step=1, optimizer=1, norm=2.0, clipped=False)
    stored = gather(logger.rows)
    assert stored["grad_norm/pre"] == {1: 1.0}
    assert stored["grad_norm/pre_1"] == {1: 2.0}
    assert (stored["clip/rate"], stored["clip/rate_1"]) == ({1: 1.0}, {1: 0.0})
    assert "loss" not in stored


def test_what_is_not_ours_is_not_closed(tmp_path: Path) -> None:
    logger: Any = Logger()
    closed: list[str] = []
    logger.close = logger.finish = lambda: closed.append("closed")
    train(tmp_path / "r", [logger])
    assert logger.rows
    assert closed == []


# ---- A sink that fails


class Broken(Logger):
    def log(self, values: dict[str, float], step: int) -> None:
        if step == 5:
            raise ConnectionError("no route to host")
        super().log(values, step)


def test_a_sink_that_raises_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    broken, logger = Broken(), Logger()
    with pytest.warns(GradclipWarning, match="the sink Broken gets no more steps") as told:
        run = train(tmp_path / "r", [broken, logger], steps=12)
    assert len(told) == 1
    assert [step for step, _ in broken.rows] == [1, 2, 3, 4]
    check(gather(logger.rows), run)
    (event,) = [event for event in run.events if event.name == "sink-stopped"]
    assert "ConnectionError: no route to host" in event.text
    assert event.step == 6
    assert run.end is not None
    assert (run.end.status, run.end.steps) == ("ok", 12)


def test_a_sink_that_fails_at_the_end_is_told_too(tmp_path: Path) -> None:
    def fail() -> None:
        raise TimeoutError("upload")

    writer = RecordWriter(tmp_path / "r")
    writer._feed.sinks.append(Sink("slow", [].extend, fail))
    with pytest.warns(GradclipWarning, match="the sink slow .* TimeoutError: upload"):
        writer.end()
    assert [event.name for event in read_run(tmp_path / "r").events] == ["sink-stopped"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_sinks_go_on_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")  # No other place is left.
    logger = Logger()
    with pytest.warns(GradclipWarning, match="stops here"):
        writer = RecordWriter("/dev/full", sinks=[logger])
    for step in range(1, 200):
        writer.step(step=step, norm=1.0)
        assert step - len(logger.rows) <= 50
    writer.end()
    assert [step for step, _ in logger.rows] == list(range(1, 200))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gives_its_sinks_nothing(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from gradclip.record import RecordWriter
        class Loud:
            def log(self, values, step): print(step, flush=True)
        record = RecordWriter(sys.argv[1], sinks=[Loud()])
        record.step(step=1)
        if os.fork() == 0:
            record.step(step=2)
            record.end()
            sys.exit()
        os.wait()
        record.end()
    """
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1"]


# ---- What is refused, before anything has happened


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (object(), r"sinks=<object .*> is not usable: give text such as"),
        (3, "sinks=3 is not usable: give text"),
        ("tensorboard", r"sink='tensorboard' is not usable: give one of tensorboard:WHERE \("),
        ("tensorboard:", "sink='tensorboard:' is not usable: give one of"),
        ("visdom:x", "sink='visdom:x' is not usable: give one of"),
    ],
)
def test_what_is_no_sink(given: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text("an old record")
    with pytest.raises(PolicyError, match=message):
        RecordWriter(path, sinks=[given])
    assert path.read_text() == "an old record"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX" if kind == "tensorboard" else kind, None)
    with pytest.raises(GradclipError, match=rf"the sink {kind}:x needs .*\[{kind}\]'"):
        open_sink(f"{kind}:x")


def test_a_place_that_cannot_be_opened(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").write_text("")
    with pytest.raises(GradclipError, match=r"the sink tensorboard:.*file cannot be opened: \w+"):
        open_sink(f"tensorboard:{tmp_path / 'file'}")


def test_if_the_record_cannot_be_written_the_sinks_are_closed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with pytest.raises(GradclipError, match="cannot be written"):
        RecordWriter(tmp_path, sinks=[f"tensorboard:{tmp_path / 'tb'}"])
    assert len(list((tmp_path / "tb").iterdir())) == 1


def test_importing_the_sinks_imports_no_package_of_theirs() -> None:
    code = "import gradclip.sinks, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "tensorboardX", "wandb", "mlflow", "trackio"} & set(done.stdout.split())


# ---- The real packages

THEIRS = pytest.mark.filterwarnings("default")  # Deprecations between what they depend on.


def events_in(folder: Path) -> Stored:
    """Read TensorBoard's event files: length, checksum, message, checksum, and so on."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event

    stored: Stored = {}
    for path in folder.rglob("events.*"):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            row = event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in row.summary.value:
                stored.setdefault(value.tag, {})[row.step] = value.simple_value
    return stored


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run = train(tmp_path / "r", [f"tensorboard:{tmp_path / 'tb'}"])
    check(events_in(tmp_path / "tb"), run, 1e-6)


def test_a_summary_writer_of_the_scripts_own(tmp_path: Path) -> None:
    tensorboard_x = pytest.importorskip("tensorboardX")
    with tensorboard_x.SummaryWriter(str(tmp_path / "tb")) as writer:
        writer.add_scalar("mine", 1.0, 1)
        run = train(tmp_path / "r", [writer])
        writer.add_scalar("mine", 2.0, 2)
    stored = events_in(tmp_path / "tb")
    assert stored.pop("mine") == {1: 1.0, 2: 2.0}
    check(stored, run, 1e-6)


def test_the_summary_writer_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorboardX")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        run = train(tmp_path / "r", [writer])
    check(events_in(tmp_path / "tb"), run, 1e-6)


def wandb_rows(folder: Path) -> Any:
    """Yield (step, values) of the only offline run in a folder."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")

    (path,) = folder.rglob("*.wandb")
    for data in _leveldb_log(path.read_bytes()):
        row = wandb_internal_pb2.Record.FromString(data)
        if row.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in row.history.item
            }
            values = {k: float(v) for k, v in items.items() if not k.startswith("_")}
            yield int(values.pop("gradclip/step", items["_step"])), values


def _leveldb_log(data: bytes) -> Any:
    """Yield the records of a LevelDB log: 32 KiB blocks of (checksum, size, kind, part)."""
    block, place, parts = 32768, 7, b""  # Seven bytes name the file's kind and version.
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # Whole, or its last part.
            yield parts
            parts = b""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "wandb").mkdir()
    return tmp_path / "wandb"


@THEIRS
def test_wandb(tmp_path: Path, offline: Path) -> None:
    pytest.importorskip("wandb")
    run = train(tmp_path / "r", ["wandb:gradclip-test"])
    check(gather(wandb_rows(offline)), run)


@THEIRS
def test_a_wandb_run_of_the_scripts_own(tmp_path: Path, offline: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with wandb.init(project="gradclip-test", dir=offline) as own:
        run = train(tmp_path / "r", [own])
    check(gather(wandb_rows(offline)), run)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return mlflow


def mlflow_rows(mlflow: Any, experiment: str) -> Stored:
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {
        name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


@THEIRS
def test_mlflow(tmp_path: Path, store: Any) -> None:
    run = train(tmp_path / "r", ["mlflow:gradclip-test"])
    check(mlflow_rows(store, "gradclip-test"), run)
    assert store.active_run() is None


@THEIRS
def test_the_module_mlflow(tmp_path: Path, store: Any) -> None:
    store.set_experiment("own")
    with store.start_run():
        run = train(tmp_path / "r", [store])
    check(mlflow_rows(store, "own"), run)


@THEIRS
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run = train(tmp_path / "r", ["trackio:gradclip-test"])
    (own,) = trackio.Api().runs("gradclip-test")
    logs = importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs
    rows = [
        (row["step"], {name: float(row[name]) for name in SCALARS if name in row})
        for row in logs("gradclip-test", own.name)
    ]
    check(gather(rows), run)
