"""The recorder: its rows agree with the results, and reading them costs one copy a batch."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from gradclip import ClipResult, NonFiniteError, PolicyError, RecordError, kernel, read_run
from gradclip.errors import GradclipWarning
from gradclip.record import RecordWriter
from gradclip.torch import Clipper, Recorder, attach, record
from integration.training import ReadsBack, decided_on_device, net, scripted_gradients

COLUMNS = {
    "norm": "total_norm",
    "clipped_norm": "clipped_norm",
    "coef": "coef",
    "removed": "removed",
    "cosine": "cosine",
    "limit": "limit",
    "clipped": "clipped",
    "skipped": "skipped",
}


@pytest.mark.parametrize("policy", ["norm:0.5", "value:-0.1,0.1|norm:0.2", "norm:1,scope=tensor"])
@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
def test_the_record_agrees_with_the_results(
    policy: str, every: int, device: bool, tmp_path: Path
) -> None:
    model = net()
    clipper = Clipper(model.named_parameters(), policy, max_skips=9)
    results: list[ClipResult] = []
    bad = {3: float("nan"), 5: float("inf")}
    with record(clipper, tmp_path / "r", every=every, loss=lambda: 1.5), on(device):
        for step in range(8):
            scripted_gradients(model, step, bad.get(step))
            with _warns_of_skips():
                results.append(clipper.clip_())
    run = read_run(tmp_path / "r")
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    for column, name in COLUMNS.items():
        expected = [float(getattr(result, name)) for result in results]
        np.testing.assert_array_equal(run.column(column), expected, column)
    expected_norms = np.stack([result.norms.numpy() for result in results])
    np.testing.assert_array_equal(run.norms().matrix, expected_norms)
    assert run.norms().names == clipper.names
    assert run.nonfinite == [(4, ("0.weight",)), (6, ("0.weight",))]
    assert run.column("loss").tolist() == [1.5] * 8
    assert run.end is not None
    assert (run.end.status, run.end.steps, run.end.skipped) == ("ok", 8, 2)
    assert run.header.policy == policy


def on(device: bool) -> Any:
    return decided_on_device() if device else nullcontext()


def _warns_of_skips() -> Any:
    return mock.patch("warnings.warn")


def test_one_copy_for_each_batch_and_none_between(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
    # More than max_skips steps: so often the clipper looks for itself.
    clipper = Clipper(model.named_parameters(), "norm:0.5", max_skips=99)
    last = torch.tensor(0.0)
    writer = RecordWriter(tmp_path / "r", every=10)
    Recorder(writer, clipper, optimizer, loss=lambda: last)
    read: list[int] = []
    with decided_on_device(), mock.patch.object(torch.Tensor, "tolist", _tolist(read)):
        for step in range(20):
            scripted_gradients(model, step)
            with ReadsBack() as reads:
                clipper.clip_()
            assert reads.count == 0
            assert len(read) == (step + 1) // 10
    assert read == [10 * (8 + 4 + 2)] * 2  # Numbers, norms, loss and learning rate.
    writer.end()


def _tolist(sizes: list[int]) -> Any:
    original = torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> Any:
        sizes.append(tensor.numel())
        return original(tensor)

    return tolist


def test_a_learning_rate_and_a_loss_are_taken_as_they_are_now(tmp_path: Path) -> None:
    """A scheduler writes into a tensor; a script goes on with its loss."""
    model = net()
    rate, loss = torch.tensor(1.0), torch.tensor(10.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    clipper = attach(optimizer, "norm:0.5", model=model)
    with record(clipper, tmp_path / "r", optimizer=optimizer, loss=lambda: loss):
        for step in range(3):
            scripted_gradients(model, step)
            optimizer.step()
            optimizer.param_groups[0]["lr"].mul_(0.5)
            loss += 1
    run = read_run(tmp_path / "r")
    assert run.column("lr").tolist() == [1.0, 0.5, 0.25]
    assert run.column("loss").tolist() == [10.0, 11.0, 12.0]
    assert run.optimizers[0].class_name == "Adam"


@pytest.mark.parametrize("lr", [0.1, None, "fast"])
def test_a_learning_rate_that_is_no_number_is_left_out(lr: Any, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    if lr is None:
        del optimizer.param_groups[0]["lr"]
    clipper = Clipper([weight], "norm:1")
    with record(clipper, tmp_path / "r", optimizer=optimizer):
        weight.grad = torch.ones(2)
        clipper.clip_()
    run = read_run(tmp_path / "r")
    assert run.seen("lr").tolist() == [lr == 0.1]


def test_a_large_model_is_sampled_by_the_stated_rule(tmp_path: Path) -> None:
    params = [(f"p{i}", nn.Parameter(torch.ones(2))) for i in range(600)]
    clipper = Clipper(params, "norm:1", max_skips=99)
    with record(clipper, tmp_path / "r"), _warns_of_skips():
        for step in range(1, 13):
            for _, p in params:
                p.grad = torch.ones(2)
            if step in (5, 6, 9):
                params[7][1].grad = torch.full((2,), float("nan"))
            clipper.clip_()
    run = read_run(tmp_path / "r")
    # ⌈600/256⌉ = 3: steps 1, 4, 7, 10, and where a row of NaN begins: 5, 9.
    assert run.norms().steps.tolist() == [1, 4, 5, 7, 9, 10]
    assert run.nonfinite == [(5, ("p7",)), (9, ("p7",))]
    assert (~np.isfinite(run.column("norm"))).nonzero()[0].tolist() == [4, 5, 8]


def test_a_missing_gradient_is_not_a_zero_one(tmp_path: Path) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    clipper = Clipper(params, "norm:1")
    with record(clipper, tmp_path / "r"):
        params[0].grad, params[2].grad = torch.zeros(2), torch.ones(2)
        clipper.clip_()
    (row,) = _rows(tmp_path / "r", "step")
    assert row["norms"] == [0.0, None, pytest.approx(2**0.5)]


def _rows(path: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_the_end_says_how_the_training_ended(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    clipper = Clipper([weight], "norm:1", nonfinite="raise")
    weight.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(NonFiniteError), record(clipper, tmp_path / "r"):
        clipper.clip_()
    run = read_run(tmp_path / "r")
    assert run.end is not None
    assert run.end.status.startswith("error: NonFiniteError: the gradient of 0")
    assert run.column("norm").tolist() == [np.inf]  # The step that ended it is there.


def test_after_the_record_the_clipper_goes_on(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    clipper = Clipper([weight], "norm:1")
    with record(clipper, tmp_path / "r", every=1):
        pass
    weight.grad = torch.ones(2)
    clipper.clip_()
    assert not clipper.observers
    assert len(read_run(tmp_path / "r").steps) == 0


def test_a_slow_training_is_readable_all_the_same(tmp_path: Path) -> None:
    """No step waits for long for a batch to be full."""
    weight = nn.Parameter(torch.ones(2))
    clipper = Clipper([weight], "norm:1")
    clock = mock.Mock(return_value=0.0)
    with mock.patch("time.perf_counter", clock), record(clipper, tmp_path / "r", every=50):
        for step in range(1, 5):
            clock.return_value += 1.5
            weight.grad = torch.ones(2)
            clipper.clip_()
            assert len(read_run(tmp_path / "r").steps) == 2 * (step // 2)


def test_nothing_is_kept_alive(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipper = attach(optimizer, "norm:1")
    recorder = record(clipper, tmp_path / "r", optimizer=optimizer)
    gone = [weakref.ref(clipper), weakref.ref(optimizer)]
    scripted_gradients(model, 0)
    optimizer.step()
    del clipper, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    recorder.close()
    assert len(read_run(tmp_path / "r").steps) == 1


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    clipper = Clipper([nn.Parameter(torch.ones(2))], "norm:1")
    with pytest.raises(PolicyError, match="every=0 is not usable"):
        record(clipper, tmp_path / "r", every=0)
    assert not (tmp_path / "r").exists()
    with pytest.raises(RecordError, match="cannot be written"):
        record(clipper, tmp_path)
    assert not clipper.observers


# ---- What ran


def test_what_ran_is_in_the_record(path: str, tmp_path: Path) -> None:
    """On each path of gradclip.torch; a fallback on the host is an event, told once."""
    model = net()
    clipper = Clipper(model.named_parameters(), "norm:0.5")
    with record(clipper, tmp_path / "r", every=2):
        for step in range(5):
            scripted_gradients(model, step)
            clipper.clip_()
    run = read_run(tmp_path / "r")
    ran = f"c-{kernel.status().isa}" if path == "kernel" else "torch"
    assert run.ran() == [(1, ran)]
    assert [row.get("ran") for row in _rows(tmp_path / "r", "step")] == [ran, *[None] * 4]
    told = [(event.name, event.step) for event in run.events]
    assert told == ([("fallback", 1)] if path == "fallback" else [])
    if told:
        assert run.events[0].text.startswith("torch did the clipping, slower than the C kernel")


def test_what_ran_changes_with_the_gradients(tmp_path: Path) -> None:
    if not kernel.available():
        pytest.skip("the C kernel is not built")
    weight, bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    clipper = Clipper([("weight", weight), ("bias", bias)], "norm:0.5")
    native = f"c-{kernel.status().isa}"
    with record(clipper, tmp_path / "r"):
        for step in range(6):
            weight.grad, bias.grad = torch.ones(4, 4), torch.ones(4)
            if step in (2, 3):
                bias.grad = torch.ones(8)[::2]  # With gaps: not for the kernel.
            clipper.clip_()
    run = read_run(tmp_path / "r")
    assert run.ran() == [(1, native), (3, f"{native}+torch"), (5, native)]
    (event,) = run.events
    assert (event.name, event.step) == ("fallback", 3)
    assert "some of the gradients" in event.text


# ---- A path that exists


def test_a_cell_that_runs_again_closes_its_first_recorder(tmp_path: Path) -> None:
    path = tmp_path / "cell.jsonl"
    weight = nn.Parameter(torch.ones(2))
    clipper = Clipper([weight], "norm:1")
    recorders = []
    for run in range(3):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            recorders.append(record(clipper, path))
        assert len(told) == (run > 0)
        assert clipper.observers == [recorders[-1]]
        for _ in range(60):
            weight.grad = torch.ones(2)
            clipper.clip_()
    recorders[-1].close()
    assert not clipper.observers
    for recorder, name in zip(recorders, ("cell", "cell.2", "cell.3"), strict=True):
        assert recorder.path == tmp_path / f"{name}.jsonl"
        run = read_run(recorder.path)
        assert len(run.steps) == 60
        assert run.end is not None
        assert run.end.steps == 60


def test_two_records_of_one_clipper_and_two_clippers_on_one_path(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    one, two = (Clipper([weight], "norm:1") for weight in weights)
    first, other = record(one, tmp_path / "a"), record(one, tmp_path / "b")
    with pytest.warns(GradclipWarning, match=r"is writing a: this record is a\.2"):
        second = record(two, tmp_path / "a")
    for clipper, weight in ((one, weights[0]), (two, weights[1]), (one, weights[0])):
        weight.grad = torch.ones(2)
        clipper.clip_()
    for recorder in (first, other, second):
        recorder.close()
    steps = {path.name: len(read_run(path).steps) for path in tmp_path.iterdir()}
    assert steps == {"a": 2, "b": 2, "a.2": 1}


@pytest.mark.parametrize("if_exists", ["overwrite", "append"])
def test_an_old_record_is_erased_or_goes_on_if_the_user_says_so(
    tmp_path: Path, if_exists: Any
) -> None:
    weight = nn.Parameter(torch.ones(2))
    for _ in range(2):
        with record(clipper := Clipper([weight], "norm:1"), tmp_path / "a", if_exists=if_exists):
            for _ in range(3):
                weight.grad = torch.ones(2)
                clipper.clip_()
    run = read_run(tmp_path / "a")
    assert run.steps.tolist() == list(range(1, 4 if if_exists == "overwrite" else 7))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
