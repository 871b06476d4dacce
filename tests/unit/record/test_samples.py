"""The samples in a record: written, read, joined, and refused where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import RecordError, read_run
from gradclip.record import RecordWriter, Samples

FLOATS = st.floats(allow_nan=False)
IDS = st.integers(-(2**53), 2**53) | st.text('aé\n"', max_size=4)


@st.composite
def some_samples(draw: Any) -> Samples:
    count = draw(st.integers(0, 4))
    at, norms, ids = (
        tuple(draw(st.lists(each, min_size=count, max_size=count)))
        for each in (st.integers(0, 2**53), FLOATS, IDS)
    )
    own = ids if draw(st.booleans()) else None
    return Samples(draw(st.integers(0, 2**53)), at, norms, own, draw(FLOATS), draw(FLOATS))


def row_of(samples: Samples) -> dict[str, object]:
    return {key: value for key, value in samples._asdict().items() if value is not None}


def write(path: Path, rows: list[Samples | None], **options: Any) -> Path:
    with RecordWriter(path, **options) as record:
        record.optimizer("SGD", [("weight", (1,), "float32")])
        for step, samples in enumerate(rows, 1):
            record.step(step=step, norm=1.0, samples=None if samples is None else row_of(samples))
    return path


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.none() | some_samples(), max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Samples | None]) -> None:
    run = read_run(write(tmp_path_factory.mktemp("r") / "r", rows))
    assert run.samples() == [(step, each) for step, each in enumerate(rows, 1) if each is not None]
    assert run.samples(1) == []
    assert "samples" not in run.names


ONE = Samples(8, (3, 1), (2.0, 1.0), (30, "b.png"), 0.5, 4.0)


def test_parquet_keeps_them(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run = read_run(write(tmp_path / "r", [None, ONE, None]))
    run.to_parquet(tmp_path / "r.parquet")
    again = read_run(tmp_path / "r.parquet")
    assert again.samples() == run.samples() == [(2, ONE)]
    assert again.names == run.names


def test_pandas_has_the_same_columns_as_ever(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frames = [
        read_run(write(tmp_path / f"{i}", [each])).to_pandas() for i, each in ((0, None), (1, ONE))
    ]
    assert list(frames[0].columns) == list(frames[1].columns)


def test_the_parts_of_a_run_are_joined(tmp_path: Path) -> None:
    for _ in range(2):
        write(tmp_path / "r", [None, ONE], if_exists="append")
    text = (tmp_path / "r").read_text()
    first, second = text.find('"kind":"header"'), text.rfind('"kind":"header"')
    assert first != second
    assert read_run(tmp_path / "r").samples() == [(2, ONE), (4, ONE)]


def test_ratios_are_over_the_median() -> None:
    assert ONE.ratios == (4.0, 2.0)
    assert np.isnan(ONE._replace(median=0.0).ratios).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": [0]}, "samples is .* must be as many norms, and ids, as places"),
        ({"ids": [1]}, "as many norms, and ids, as places"),
        ({"norms": ["x", 1.0]}, "norms is 'x'"),
        ({"at": [0.5, 1]}, "at is 0.5"),
        ({"of": -1}, "of is -1"),
        ({"ids": [None, 1]}, "ids is None"),
        ({"median": None}, "median is None"),
    ],
)
def test_wrong_samples_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "r", [ONE]).read_text().splitlines()
    row = json.loads(lines[2])
    row["samples"] |= change
    lines[2] = json.dumps(row)
    (tmp_path / "r").write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=f"line 3 is damaged.*{message}"):
        read_run(tmp_path / "r")


def test_a_number_at_this_key_is_a_column_of_the_users_own(tmp_path: Path) -> None:
    lines = write(tmp_path / "r", [ONE]).read_text().splitlines()
    row = json.loads(lines[2])
    row["samples"] = 128
    lines[2] = json.dumps(row)
    (tmp_path / "r").write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path / "r")
    assert run.column("samples").tolist() == [128.0]
    assert run.samples() == []
