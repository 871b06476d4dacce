"""W&B's files and the wire format: the rare forms of a field, and each kind of damage."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradclip.errors import RecordError
from gradclip.record.foreign import read_log
from gradclip.record.foreign.wire import fields, float_of, signed, text_of

from .test_foreign import wandb_file, wire


def number(field: int, value: int) -> bytes:
    """Return a field of a small whole number."""
    return bytes([field << 3, value])


def item(key: str | tuple[str, ...], value: object) -> bytes:
    """Return a cell of W&B's history; a tuple is the way into nested values."""
    name = wire(1, key.encode()) if isinstance(key, str) else b"".join(
        wire(2, part.encode()) for part in key
    )  # fmt: skip
    return wire(1, name + wire(16, json.dumps(value).encode()))


def columns_of(path: Path, *records: bytes) -> Mapping[str, Mapping[int, float]]:
    path.write_bytes(wandb_file([wire(2, record) for record in records]))
    return read_log(path).columns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run-x.wandb"


def test_a_nested_name_has_dots(path: Path) -> None:
    assert columns_of(path, item(("optimizer", "lr"), 0.5)) == {"optimizer.lr": {0: 0.5}}


def test_the_step_may_stand_in_a_field_of_its_own(path: Path) -> None:
    row = item("loss", 2.0) + wire(2, number(1, 7)) + number(3, 1)
    assert columns_of(path, row) == {"loss": {7: 2.0}}
    both = row + item("_step", 9)
    assert columns_of(path, both) == {"loss": {9: 2.0}}


def test_names_of_w_and_b_itself_and_values_that_are_no_numbers_are_left_out(path: Path) -> None:
    row = item("_runtime", 3.0) + item("note", "x") + item("flag", True) + item("loss", 1.0)
    assert columns_of(path, row) == {"loss": {0: 1.0}}


def test_a_step_beyond_whole_floats_is_damage(path: Path) -> None:
    far = bytes([1 << 3]) + b"\xff" * 8 + b"\x01"
    with pytest.raises(RecordError, match=r"the step \d+ is over 2\^53"):
        columns_of(path, item("loss", 1.0) + wire(2, far))
    assert columns_of(path, item("loss", 1.0) + item("_step", 1e300)) == {"loss": {0: 1.0}}


def test_a_reserved_rest_of_a_block_is_passed_over(path: Path) -> None:
    first, second = (wandb_file([wire(2, item("loss", v) + item("_step", i))])
                     for i, v in enumerate((1.0, 2.0)))  # fmt: skip
    filled = first + b"\0" * (32768 - len(first))
    path.write_bytes(filled + second[7:])
    log = read_log(path)
    assert log.columns == {"loss": {0: 1.0, 1: 2.0}}
    assert log.notes == ()
    path.write_bytes(filled + second[7:] + b"\0" * 4)  # The head of the next record is cut off.
    assert read_log(path).notes == ("the last record was cut off and is left out",)


def test_the_wire_format_has_numbers_of_fixed_size() -> None:
    data = bytes([1 << 3 | 5]) + struct.pack("<f", 0.5) + bytes([2 << 3 | 1])
    data += struct.pack("<d", 0.25)
    assert [(n, float_of(value)) for n, value in fields(data)] == [(1, 0.5), (2, 0.25)]
    assert signed((1 << 64) - 3) == -3
    assert signed(3) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes([1 << 3 | 3, 0]), "the unknown wire type 3"),
        (bytes([1 << 3 | 2, 5]) + b"abc", "a field is cut off"),
        (bytes([1 << 3 | 5]) + b"abc", "a field is cut off"),
        (bytes([1 << 3, 0x80]), "a number is cut off"),
        (bytes([1 << 3]) + b"\x80" * 12, "a number is cut off"),
    ],
)
def test_a_damaged_message_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(fields(data))


def test_a_field_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a text is a number"):
        text_of(3)
    for value in (3, b"abc"):
        with pytest.raises(ValueError, match="a float has the wrong size"):
            float_of(value)


def test_a_row_without_a_number_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,grad_norm\n1,2\n2,\n3,4\n")
    assert read_log(path).columns == {"grad_norm": {1: 2.0, 3: 4.0}}


def test_a_column_of_steps_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("it,grad_norm\n1,2\n")
    with pytest.raises(RecordError, match=r"--step='epoch' is not usable: .*'it', 'grad_norm'"):
        read_log(path, "epoch")
    assert read_log(path, "it").columns == {"grad_norm": {1: 2.0}}
