"""Logs of other programs: what is found in them, and what is refused."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip.errors import RecordError
from gradclip.record import Run, read_run
from gradclip.record.foreign import import_log, read_log
from gradclip.record.foreign.names import plain_name

STEPS = range(1, 41)


def imported(path: Path, step: str | None = None, **asked: str) -> Run:
    record = path.with_name("imported.jsonl")
    record.write_bytes(import_log(path, read_log(path, step), asked).text)
    return read_run(record)


def check(run: Run, kind: str, norm: str, loss: str, lr: str) -> None:
    """Check a run whose log has the loss 3/step, the norm step and the rate 0.5."""
    about = run.header.extra["imported"]
    assert isinstance(about, dict)
    assert (about["kind"], about["columns"]) == (kind, {"norm": norm, "loss": loss, "lr": lr})
    assert run.steps.tolist() == [*STEPS]
    np.testing.assert_allclose(run.column("norm"), [*STEPS], rtol=1e-6)
    np.testing.assert_allclose(run.column("loss"), 3 / np.array(STEPS), rtol=1e-6)
    assert set(run.column("lr")) == {0.5}
    assert not run.seen("clipped").any()
    assert run.end is not None
    assert run.end.status == "ok"


def test_tensorboard(tmp_path: Path) -> None:
    writers = pytest.importorskip("tensorboardX")
    writer = writers.SummaryWriter(str(tmp_path / "tb"))
    for step in STEPS:
        writer.add_scalar("train/loss", 3 / step, step)
        writer.add_scalar("train/grad_norm", float(step), step)
        writer.add_scalar("train/learning_rate", 0.5, step)
        writer.add_scalar("eval/loss", 9.0, step)
    writer.add_histogram("weights", np.arange(3.0), 1)
    writer.add_text("note", "text", 1)
    writer.close()
    names = ("train/grad_norm", "train/loss", "train/learning_rate")
    check(imported(tmp_path / "tb"), "TensorBoard", *names)
    (file,) = (tmp_path / "tb").iterdir()
    whole = file.read_bytes()
    check(imported(file), "TensorBoard", *names)
    file.write_bytes(whole[:-3])
    assert imported(file).events[0].text.endswith("was cut off and is left out")
    file.write_bytes(b"\xff" + whole[1:])
    with pytest.raises(RecordError, match=r"is damaged \(a length\)"):
        read_log(file)


def test_scalars_that_tensorflow_writes_as_tensors(tmp_path: Path) -> None:
    """TensorFlow 2 writes a scalar as a tensor, packed or as bytes."""
    path = tmp_path / "events.out.tfevents.1"
    from gradclip.record.foreign.tensorboard import _masked_crc

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def event(step: int, tag: bytes, tensor: bytes) -> bytes:
        value = field(1, field(1, tag) + field(8, tensor))
        body = bytes([2 << 3, step]) + field(5, value)
        head = struct.pack("<Q", len(body))
        return head + struct.pack("<I", _masked_crc(head)) + body + b"1234"

    single = bytes([1 << 3, 1]) + field(4, struct.pack("<f", 2.5))
    double = bytes([1 << 3, 2]) + field(6, struct.pack("<d", 0.5))
    text = bytes([1 << 3, 7]) + field(8, b"x")
    path.write_bytes(
        event(1, b"grad_norm", single) + event(1, b"lr", double) + event(1, b"t", text)
    )
    assert read_log(path).columns == {"grad_norm": {1: 2.5}, "lr": {1: 0.5}}


def test_the_check_sum_is_the_one_of_tensorflow() -> None:
    """The value is of the standard's own example: CRC-32C of the digits 1 to 9 is e3069283."""
    from gradclip.record.foreign.tensorboard import _masked_crc

    crc = 0xE3069283
    assert _masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def wire(number: int, data: bytes) -> bytes:
    """Return a field of bytes in the wire format."""
    key, length = number << 3 | 2, len(data)
    head = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    while length > 127:
        head += bytes([length & 127 | 128])
        length >>= 7
    return head + bytes([length]) + data


def wandb_file(records: list[bytes]) -> bytes:
    """Return records as W&B's file has them: blocks of 32,768 bytes, and a header of 7."""
    data = b":W&B\xe1\xbe\x00"
    for record in records:
        kinds = []
        while True:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += b"\0" * left
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kinds.append(part)
            kind = (1 if len(kinds) == 1 else 4) if not record else 2 if len(kinds) == 1 else 3
            data += b"\0" * 4 + struct.pack("<HB", len(part), kind) + part
            if not record:
                break
    return data


def test_wandb(tmp_path: Path) -> None:
    """The history lies over several blocks, between records of other kinds."""
    path = tmp_path / "run-x.wandb"
    records = [wire(17, b"")]
    for step in STEPS:
        cells = {"train/loss": 3 / step, "train/grad_norm": float(step), "lr": 0.5, "_step": step}
        items = [wire(1, wire(1, k.encode()) + wire(16, json.dumps(v).encode()))
                 for k, v in cells.items()]  # fmt: skip
        items.append(wire(1, wire(2, b"note") + wire(16, json.dumps("x" * 5000).encode())))
        records += [wire(2, b"".join(items)), wire(7, b"")]
    whole = wandb_file(records)
    assert len(whole) > 5 * 32768
    path.write_bytes(whole)
    check(imported(path), "W&B", "train/grad_norm", "train/loss", "lr")
    path.write_bytes(whole[:-8])
    assert imported(path).events[0].text == "the last record was cut off and is left out"
    path.write_bytes(whole[:100] + b"\xff" * 50 + whole[150:])
    with pytest.raises(RecordError, match=r"is damaged .*: export the run as CSV"):
        read_log(path)


def test_trainer_state(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    history: list[dict[str, object]] = [
        {"loss": 3 / s, "grad_norm": float(s), "learning_rate": 0.5, "epoch": 0.1, "step": s}
        for s in STEPS
    ]
    history += [{"eval_loss": 2.0, "step": 40}, {"train_loss": 1.0, "step": 40}]
    path.write_text(json.dumps({"best": None, "log_history": history}))
    check(imported(path), "Trainer", "grad_norm", "loss", "learning_rate")
    path.write_text('{"log_history": 3}')
    with pytest.raises(RecordError, match="has no list `log_history`"):
        read_log(path)
    path.write_text('{"log_history": [')
    with pytest.raises(RecordError, match="is not whole JSON"):
        read_log(path)


def test_lightning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    lines = ["epoch,grad_2.0_norm_total,lr-AdamW,step,train_loss_epoch,train_loss_step"]
    for step in STEPS:
        lines += [f"0,{step},,{step},,", f",,0.5,{step},,", f"0,,,{step},,{3 / step}"]
    path.write_text("\n".join([*lines, "0,,,40,1.0,"]) + "\n")
    run = imported(path)
    check(run, "CSV", "grad_2.0_norm_total", "train_loss_step", "lr-AdamW")
    assert run.events == ()


def test_an_export_of_wandb(tmp_path: Path) -> None:
    path = tmp_path / "wandb_export.csv"
    names = ["train/loss", "train/grad_norm", "train/learning_rate"]
    head = ["Step", *(f"run-3 - {name}{end}" for name in names for end in ("", "__MIN", "__MAX"))]
    rows = [[s, *(v for v in (3 / s, s, 0.5) for _ in range(3))] for s in STEPS]
    path.write_text("\n".join(",".join(f'"{c}"' for c in row) for row in [head, *rows]) + "\n")
    check(imported(path), "CSV", *(f"run-3 - {names[i]}" for i in (1, 0, 2)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_any_table_with_named_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "log.csv"
    rows = [["it", "L", "|g|", "eta"], *([s, 3 / s, s, 0.5] for s in STEPS)]
    path.write_text("\n".join(delimiter.join(map(str, row)) for row in rows), encoding="utf-8-sig")
    check(imported(path, norm="|g|", loss="L", lr="eta"), "CSV", "|g|", "L", "eta")


def test_rows_are_counted_without_a_column_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("grad_norm,loss\n1,inf\n2,\n,nan\n")
    run = imported(path)
    assert run.steps.tolist() == [1, 2, 3]
    assert run.column("loss")[0] == math.inf
    assert run.seen("loss").tolist() == [True, False, True]
    assert run.events[0].text == "no column has the steps, so the rows were counted"


def test_a_step_that_comes_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm,other\n1,1,1\n2,2,1\n1,5,1\n")
    run = imported(path)
    assert run.column("norm").tolist() == [5.0, 2.0]
    texts = [event.text for event in run.events]
    assert texts == ["1 value of 'grad_norm' replaced by a later one of the same step"]


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        ("step,loss\n1,2\n", {}, r"no column with a usual name of the gradient norm.*'loss'$"),
        ("grad_norm,total_norm\n1,2\n", {}, r"several columns .*'grad_norm', 'total_norm'; give"),
        ("grad_norm\n1\n", {"norm": "g"}, r"--norm='g' is not usable: .*there are 'grad_norm'"),
        ("step,grad_norm\nx,1\n", {}, r"line 2: the step is 'x', and must be a whole number"),
        ("step,grad_norm\n1e300,1\n", {}, r"line 2: the step is '1e300'"),
        ("grad_norm,grad_norm\n1,2\n", {}, r"line 1 has no names of columns, or a name twice"),
        ("grad_norm,loss\n1,2,3\n", {}, r"line 2 has 3 cells, and line 1 names 2"),
        ("step,loss\n1,2\n", {"norm": "none", "loss": "none"}, r"has no number in the columns"),
        ("", {}, r"line 1 has no names"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, asked: dict[str, str], message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        imported(path, **asked)


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"is not a CSV file .*: give TensorBoard's"):
        read_log(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_log(tmp_path / "missing")
    with pytest.raises(RecordError, match="has no event file"):
        read_log(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.dictionaries(
        st.integers(-(2**53), 2**53),
        st.tuples(st.floats(allow_nan=False), st.none() | st.floats(allow_nan=False)),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_every_number_comes_through(tmp_path_factory: pytest.TempPathFactory, rows: dict) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    lines = [f"{s},{n!r},{'' if v is None else repr(v)}" for s, (n, v) in rows.items()]
    path.write_text("\n".join(["step,grad_norm,loss", *lines]))
    run = imported(path)
    assert dict(zip(run.steps.tolist(), run.column("norm").tolist(), strict=True)) == {
        step: norm for step, (norm, _) in rows.items()
    }
    losses = run.column("loss")[run.seen("loss")].tolist()
    assert losses == [loss for _, (_, loss) in sorted(rows.items()) if loss is not None]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("train/loss", "loss"), ("train_loss", "loss"), ("eval/loss", "eval_loss"),
     ("Grad Norm", "grad_norm"), ("train/epoch", "train_epoch"), ("my run - lr", "lr")],
)  # fmt: skip
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain
