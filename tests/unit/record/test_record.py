"""The record: what is written comes back, whatever happens to the run or to the disk."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip.errors import GradclipError, GradclipWarning, RecordError
from gradclip.record import SCHEMA, STEP_FIELDS, Parameter, RecordWriter, Run, read_run

any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)
any_name = st.text(max_size=20)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def write_lines(path: Path, *rows: object) -> Path:
    header = {"kind": "header", "schema": SCHEMA}
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


def in_child(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Start a real Python process that imports what the tests import."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, text=True, **options)


# What is written comes back.


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(any_float, st.none() | any_float, st.lists(any_float, max_size=4))),
    names=st.lists(any_name, min_size=4, max_size=4),
    text=any_name,
)
def test_round_trip(tmp_path_factory, rows, names, text):
    path = tmp_path_factory.mktemp("record") / "run.jsonl"
    with RecordWriter(path, policy=text, command=names, every=3) as record:
        record.optimizer("AdamW", [Parameter(name, (2, 3), "float32") for name in names])
        record.event(text, text)
        for step, (norm, loss, norms) in enumerate(rows, 1):
            record.step(step=step, norm=norm, loss=loss, norms=norms)
    run = read_run(path)
    assert run.header.policy == text
    assert run.header.command == tuple(names)
    assert [parameter.name for parameter in run.optimizers[0].parameters] == names
    assert run.optimizers[0].parameters[0].shape == (2, 3)
    assert [(event.name, event.text) for event in run.events] == [(text, text)]
    np.testing.assert_array_equal(run.column("norm"), [norm for norm, _, _ in rows])
    np.testing.assert_array_equal(
        run.column("loss"), [math.nan if loss is None else loss for _, loss, _ in rows]
    )
    assert run.seen("loss").tolist() == [loss is not None for _, loss, _ in rows]
    steps, columns, matrix = run.norms()
    assert steps.tolist() == list(range(1, len(rows) + 1))
    assert columns == tuple(names)
    for line, (_, _, norms) in zip(matrix, rows, strict=True):
        np.testing.assert_array_equal(line[: len(norms)], norms)
        assert np.isnan(line[len(norms) :]).all()
    bad = [step for step, row in enumerate(rows, 1) if not np.isfinite(row[2]).all()]
    assert [step for step, _ in run.nonfinite] == bad
    assert run.end is not None
    assert (run.end.status, run.end.steps) == ("ok", len(rows))


def test_every_line_is_json_for_every_reader(path):
    with RecordWriter(path) as record:
        record.step(step=1, norm=math.nan, loss=-math.inf, norms=np.array([1.0, math.inf]))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = [
        json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()
    ]
    assert [row["kind"] for row in rows] == ["header", "step", "end"]
    assert rows[1]["norm"] == "nan"
    assert rows[1]["loss"] == "-inf"
    assert rows[1]["norms"] == [1.0, "inf"]
    assert "nonfinite" not in rows[1]


def test_scalars_of_other_libraries(path):
    torch = pytest.importorskip("torch")
    with RecordWriter(path) as record:
        record.step(
            step=np.int64(1),  # type: ignore[arg-type]
            norm=np.float32(0.5),
            loss=torch.tensor(0.25, dtype=torch.bfloat16),
            limit=torch.tensor(math.inf),
            clipped=torch.tensor(True),
            norms=torch.tensor([1.0, 2.0]),
        )
    run = read_run(path)
    assert run.column("loss").tolist() == [0.25]
    assert run.column("limit").tolist() == [math.inf]
    assert run.column("clipped").tolist() == [1.0]
    assert run.norms().matrix.tolist() == [[1.0, 2.0]]


def test_a_name_with_a_lone_surrogate(path):
    with RecordWriter(path) as record:
        record.optimizer("SGD", [("\ud800", (1,), "float32")])
    assert read_run(path).optimizers[0].parameters[0].name == "\ud800"


def test_several_optimizers(path):
    with RecordWriter(path) as record:
        first = record.optimizer("Adam", [("g.w", (2,), "float32")], policy="norm:1.0")
        second = record.optimizer("SGD", [("d.w", (2,), "float32"), ("d.b", (1,), "float32")])
        for step in (1, 2):
            record.step(step=step, optimizer=first, norm=step, norms=[step])
            record.step(step=step, optimizer=second, norm=10 * step, nonfinite=["d.b"])
    run = read_run(path)
    assert (first, second) == (0, 1)
    assert [(opt.class_name, opt.policy) for opt in run.optimizers] == [
        ("Adam", "norm:1.0"),
        ("SGD", None),
    ]
    assert run.column("norm").tolist() == [1, 10, 2, 20]
    assert run.column("norm", 1).tolist() == [10, 20]
    assert run.norms(0).matrix.tolist() == [[1], [2]]
    assert run.norms(1).matrix.shape == (0, 2)
    assert run.nonfinite == [(1, ("d.b",)), (2, ("d.b",))]
    assert run.nonfinite_of(0) == []


def test_an_absent_gradient_is_not_a_nan_one(path):
    with RecordWriter(path) as record:
        record.optimizer("SGD", [(name, (1,), "float32") for name in "abc"])
        record.step(step=1, norms=[None, 1.0, math.nan])
    run = read_run(path)
    assert np.isnan(run.norms().matrix).tolist() == [[True, False, True]]
    assert run.nonfinite == [(1, ("c",))]


def test_parameters_that_came_later(path):
    with RecordWriter(path) as record:
        record.optimizer("SGD", [("a", (1,), "float32")])
        record.step(step=1, norms=[1.0])
        record.optimizer("SGD", [("a", (1,), "float32"), ("b", (1,), "float32")], id=0)
        record.step(step=2, norms=[2.0, 3.0])
    _, names, matrix = read_run(path).norms()
    assert names == ("a", "b")
    np.testing.assert_array_equal(matrix, [[1.0, math.nan], [2.0, 3.0]])


def test_pandas(path):
    pytest.importorskip("pandas")
    with RecordWriter(path) as record:
        record.step(step=1, loss=2.0, clipped=True, batch=32)
    frame = read_run(path).to_pandas()
    assert frame.loc[0, ["step", "loss", "clipped", "batch"]].tolist() == [1, 2.0, True, 32.0]
    assert frame["clipped_total"].tolist() == [1]
    assert "ran" not in frame
    assert frame["step"].dtype == np.int64
    assert frame["clipped"].dtype == np.bool_


def test_counts_and_status(path):
    def run() -> None:
        with RecordWriter(path) as record:
            record.step(step=1, clipped=True)
            record.step(step=2, skipped=True)
            record.step(step=3)
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run()
    end = read_run(path).end
    assert end is not None
    assert (end.steps, end.clipped, end.skipped) == (3, 1, 1)
    assert end.status == "error: ZeroDivisionError: by zero"


def test_counters_are_of_each_optimizer_alone(path):
    with RecordWriter(path) as record:
        record.step(step=1, optimizer=0, norm=1.0, clipped=True)
        record.step(step=1, optimizer=1, norm=math.nan, skipped=True)
        record.step(step=2, optimizer=0, norm=1.0, nonfinite=["w"])
        record.step(step=2, optimizer=1, norm=1.0, clipped=True)
        record.step(step=3, optimizer=0, norm=math.inf, clipped=True)
        record.step(step=3, optimizer=1)  # A norm that nobody saw is not a non-finite one.
    run = read_run(path)
    clipped, skipped, nonfinite = run.counters()
    assert clipped.tolist() == [1, 0, 1, 1, 2, 1]
    assert skipped.tolist() == [0, 1, 0, 1, 0, 1]
    assert nonfinite.tolist() == [0, 1, 1, 1, 2, 1]
    assert run.counters(1).nonfinite.tolist() == [1, 1, 1]
    assert run.counters(7).clipped.shape == (0,)


def test_what_ran_is_written_when_it_changes(path):
    with RecordWriter(path) as record:
        for step, (one, two) in enumerate([("c", "t"), ("c", "t"), ("c+fold", "t"), ("c", None)]):
            record.step(step=step + 1, optimizer=0, ran=one)
            record.step(step=step + 1, optimizer=1, ran=two)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()][1:-1]
    assert [row.get("ran") for row in rows] == ["c", "t", None, None, "c+fold", None, "c", None]
    run = read_run(path)
    assert run.ran() == [(1, "c"), (3, "c+fold"), (4, "c")]
    assert run.ran(1) == [(1, "t")]
    assert run.ran(2) == []
    assert "ran" not in run.names


def test_the_page_of_the_record_lists_the_keys_that_are_written(path):
    page = (Path(__file__).parents[3] / "docs" / "record.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", page, re.MULTILINE))
    with RecordWriter(path, policy="norm:1.0") as record:
        record.optimizer("SGD", [Parameter("w", (2, 3), "float32")])
        record.event("note", "something", step=1)
        record.step(step=1)
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] != "step":
            assert row.keys() - {"kind"} == set(re.findall(r"`(\w+)`", table[row["kind"]]))
    assert table.keys() == {"header", "optimizer", "step", "event", "end"}


def test_what_ran_is_read_from_a_record_with_the_older_key(path):
    rows = [{"kind": "step", "step": step, "norm": 1.0} for step in range(1, 5)]
    rows[0]["path"], rows[2]["path"], rows[3]["path"] = "c", "c+fold", "c+fold"
    run = read_run(write_lines(path, *rows))
    assert run.ran() == [(1, "c"), (3, "c+fold")]
    assert not {"path", "ran"} & set(run.names)


def test_the_schema_lists_the_keys_that_are_written(path):
    with RecordWriter(path) as record:
        samples = {"of": 2, "at": [1], "norms": [0.5], "median": 0.5, "total": 1.0}
        record.step(step=1, ran="c", nonfinite=["w"], norms=[1.0], samples=samples)
    row = json.loads(path.read_text("utf-8").splitlines()[1])
    assert tuple(row) == ("kind", *STEP_FIELDS, "ran", "nonfinite", "norms", "samples")


# Records of other versions.


def test_a_record_of_schema_1_is_read():
    """Real, and older than the key `ran`: a later version must not change a figure here."""
    run = read_run(Path(__file__).parent / "records" / "schema-1.jsonl")
    assert (run.header.schema, run.header.policy, run.torn) == (1, "norm:1.0", False)
    assert run.header.command[-3:] == ("--clip", "norm:1.0", "train.py")
    assert set(run.header.versions) == {"python", "torch", "numpy"}
    (optimizer,) = run.optimizers
    assert (optimizer.id, optimizer.class_name, optimizer.policy) == (0, "AdamW", "norm:1.0")
    assert optimizer.parameters[0] == ("0.weight", (4, 3), "float32")
    assert [parameter.name for parameter in optimizer.parameters] == list(run.norms().names)
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.names == STEP_FIELDS
    last = [run.column(name)[-1] for name in STEP_FIELDS]
    assert last == [
        *(6, 0, 5.074466, 0.15854904055595398, 0.01, 1.327638686822115, 0.9999999999999999),
        *(1.0, 0.753216978328371, 0.24678302167162902, 1.0, 1, 0),
    ]
    assert run.column("norm")[3] == math.inf
    assert run.seen("limit").tolist() == [True, True, True, False, True, True]
    assert run.norms().matrix.shape == (6, 4)
    assert run.norms().matrix[5, 1] == 0.14471584570291138
    assert run.nonfinite == [(4, ("2.bias",))]
    assert [count.tolist() for count in run.counters()] == [
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]
    assert run.ran() == []
    (event,) = run.events
    assert (event.name, event.step) == ("script-clips", 7)
    assert run.end is not None
    assert (run.end.status, run.end.steps, run.end.clipped, run.end.skipped) == ("ok", 6, 1, 1)


# Parquet.


def assert_same(one: Run, two: Run) -> None:
    for name in ("header", "optimizers", "events", "end", "torn", "names", "nonfinite"):
        assert getattr(one, name) == getattr(two, name), name
    for name in one.names:
        np.testing.assert_array_equal(one.column(name), two.column(name), name)
        np.testing.assert_array_equal(one.seen(name), two.seen(name), name)
    for id in {0, *one.column("optimizer").astype(int)}:
        assert one.ran(id) == two.ran(id)
        for a, b in zip(one.norms(id), two.norms(id), strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2),
            any_float,
            st.none() | any_float,
            st.none() | st.lists(st.none() | any_float, max_size=3),
            st.sampled_from([None, "c-avx2", "torch"]),
        ),
        max_size=8,
    ),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    ended=st.booleans(),
)
def test_parquet_round_trip(tmp_path_factory, rows, name, ended):
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("parquet")
    record = RecordWriter(folder / "r", policy=name, command=[name], batch=32)
    for id in range(2):
        record.optimizer(name, [Parameter(name, (2, 3), "float32")], id=id, note=[name])
    record.event(name, name, step=3, more=1.5)
    for step, (id, norm, loss, norms, ran) in enumerate(rows, 1):
        record.step(
            step=step, optimizer=id, norm=norm, loss=loss, norms=norms, ran=ran, extra=2.5,
            clipped=step % 2, nonfinite=[name] if step == 4 else (),
        )  # fmt: skip
    if ended:
        record.end()
    else:
        record.flush()
    run = read_run(folder / "r")
    run.to_parquet(folder / "new" / "r.parquet")
    assert_same(read_run(folder / "new" / "r.parquet"), run)
    record.end()


def test_parquet_for_other_readers(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with RecordWriter(path) as record:
        record.optimizer("SGD", [("w", (2,), "float32"), ("b", (1,), "float32")])
        record.step(step=1, norm=1.0, clipped=True, ran="c-avx2", norms=[3.0, 4.0])
        record.step(step=2, norm=math.nan, skipped=True, nonfinite=["b"])
    read_run(path).to_parquet(tmp_path / "r.parquet")
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["clipped"] for row in rows] == [True, False]
    assert [row["loss"] for row in rows] == [None, None]
    assert math.isnan(rows[1]["norm"])
    assert [row["ran"] for row in rows] == ["c-avx2", "c-avx2"]
    assert [row["norms"] for row in rows] == [[3.0, 4.0], None]
    assert [row["nonfinite"] for row in rows] == [None, ["b"]]
    assert [row["skipped_total"] for row in rows] == [0, 1]


def test_parquet_with_the_older_column_is_read(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with RecordWriter(path) as record:
        record.step(step=1, norm=1.0, ran="c")
        record.step(step=2, norm=1.0, ran="c+fold")
    read_run(path).to_parquet(tmp_path / "r.parquet")
    table = parquet.read_table(tmp_path / "r.parquet")
    names = ["path" if name == "ran" else name for name in table.column_names]
    older = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    parquet.write_table(older, tmp_path / "old.parquet")
    run = read_run(tmp_path / "old.parquet")
    assert run.ran() == [(1, "c"), (2, "c+fold")]
    assert not {"path", "ran"} & set(run.names)


def test_parquet_that_is_no_record(path, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    foreign = tmp_path / "foreign.parquet"
    parquet.write_table(pa.table({"step": [1]}), foreign)
    with pytest.raises(RecordError, match="is a Parquet file, and not a gradclip record: give one"):
        read_run(foreign)
    RecordWriter(path).end()
    read_run(path).to_parquet(tmp_path / "r.parquet")
    whole = (tmp_path / "r.parquet").read_bytes()
    for cut in (4, 10, len(whole) - 1):
        foreign.write_bytes(whole[:cut])
        with pytest.raises(RecordError, match=r"foreign\.parquet is damaged \(.*: give one"):
            read_run(foreign)
    with pytest.raises(RecordError, match="cannot be written"):
        read_run(path).to_parquet(tmp_path)


def test_without_pyarrow_parquet_says_what_is_missing(path, monkeypatch):
    RecordWriter(path).end()
    run = read_run(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(GradclipError, match=r"to_parquet needs pyarrow: .*gradclip\[parquet\]"):
        run.to_parquet(path.with_suffix(".parquet"))
    path.write_bytes(b"PAR1PAR1")
    with pytest.raises(GradclipError, match="a Parquet file needs pyarrow"):
        read_run(path)


def test_a_read_column_belongs_to_the_caller(path):
    with RecordWriter(path) as record:
        record.step(step=1, norm=1.0)
    run = read_run(path)
    run.column("norm")[:] = 7
    assert run.column("norm").tolist() == [1.0]


# Damage.


def test_a_torn_last_line_at_every_byte(path, tmp_path):
    with RecordWriter(path, policy="nörm") as record:
        record.optimizer("SGD", [("größe", (1,), "float32")])
        record.step(step=1, norm=1.5, norms=[math.inf])
        record.event("name", "täxt")
        record.step(step=2, norm=2.5)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    for cut in range(len(whole)):
        torn.write_bytes(whole[:cut])
        if cut < len(lines[0]) - 1:
            with pytest.raises(RecordError, match=r"torn\.jsonl is (empty|not a gradclip record)"):
                read_run(torn)
            continue
        run = read_run(torn)
        # A line is whole once its closing brace is there; the newline itself may be missing.
        kept = [line for line in lines if len(b"".join(lines[: lines.index(line) + 1])) <= cut + 1]
        kinds = [json.loads(line)["kind"] for line in kept]
        assert len(run.steps) == kinds.count("step"), cut
        assert len(run.optimizers) == kinds.count("optimizer"), cut
        assert len(run.events) == kinds.count("event"), cut
        assert run.end is None or cut == len(whole) - 1
        boundary = cut == len(b"".join(kept)) or cut == len(b"".join(kept)) - 1
        assert run.torn == (not boundary), cut


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"[]\n",
        b"1\n",
        b"{}\n",
        b'{"kind":"step"}\n',
        b'{"kind":"step","step":"two"}\n',
        b'{"kind":"step","step":2,"norm":"big"}\n',
        b'{"kind":"step","step":2,"norm":1' + 400 * b"0" + b"}\n",
        b'{"kind":"step","step":2,"norms":[{}]}\n',
        b'{"kind":"optimizer"}\n',
        b'{"kind":"header","schema":1}\n',
        b"\xff\xfe\n",
        b"\0\0\0\n",
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: line[:30].decode(errors="replace").strip(),
)
def test_a_damaged_middle_line_is_named(path, line):
    with RecordWriter(path) as record:
        record.step(step=1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(RecordError, match=r"run\.jsonl, line 3 is damaged .*: remove that line"):
        read_run(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a file that `gradclip run --record"),
        (b"step,loss\n1,2\n", "is not a gradclip record: give"),
        (b'{"a": 1}\n{"a": 2}\n', r"is not a gradclip record \(no whole header\): give"),
        (b'{"kind":"step","step":1}\n', "not a gradclip record"),
        (b'{"kind":"head', "not a gradclip record"),
        (b'{"kind":"header","schema":99}\n', "schema 99.*reads up to 1: pip install --upgrade"),
    ],
)
def test_what_is_no_record(path, content, message):
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        read_run(path)


def test_no_file(tmp_path):
    with pytest.raises(RecordError, match=r"cannot be read \(No such file.*: give a file that"):
        read_run(tmp_path / "none.jsonl")
    with pytest.raises(RecordError, match="cannot be read"):
        read_run(tmp_path)


def test_what_a_later_version_may_add(path):
    write_lines(
        path,
        {"kind": "weather", "sky": "blue"},
        {"kind": "step", "step": 1, "temperature": 20.5, "note": "warm", "tags": []},
        {"kind": "event", "name": "n", "text": "t", "color": "red"},
    )
    run = read_run(path)
    assert run.column("temperature").tolist() == [20.5]
    assert run.events[0].extra == {"color": "red"}
    with pytest.raises(RecordError, match=r"no column 'note'.*there are step, .*temperature"):
        run.column("note")


def test_a_header_alone_is_a_run_of_no_steps(path):
    run = read_run(write_lines(path))
    assert run.steps.shape == run.column("norm").shape == (0,)
    assert run.norms().matrix.shape == (0, 0)
    assert (run.end, run.torn, run.nonfinite) == (None, False, [])


# Writing while things go wrong.


def test_parents_are_made_and_an_old_record_stays(tmp_path):
    path = tmp_path / "a" / "b" / "run.jsonl"
    with RecordWriter(path) as record:
        record.step(step=1)
    with pytest.warns(GradclipWarning, match=r"run\.jsonl exists .*: this record is run\.2\.jsonl"):
        record = RecordWriter(path)
    record.end()
    assert record.path == path.with_name("run.2.jsonl")
    assert len(read_run(path).steps) == 1
    assert len(read_run(record.path).steps) == 0


def test_a_path_that_cannot_be_written_is_refused_early(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "run.jsonl"):
        with pytest.raises(RecordError, match=r"cannot be written .*: give a path that can"):
            RecordWriter(path)


@pytest.mark.parametrize("options", [{"every": 0}, {"seconds": -1.0}, {"seconds": math.nan}])
def test_wrong_arguments(path, options):
    with pytest.raises(RecordError, match="is not usable: give"):
        RecordWriter(path, **options)
    assert not path.exists()


def test_wrong_rows_are_refused(path):
    with RecordWriter(path) as record:
        with pytest.raises(RecordError, match="a step row cannot be written: object has no JSON"):
            record.step(step=1, norm=object())
        with pytest.raises(RecordError, match="'kind' is a key of the schema"):
            record.step(step=1, kind="step")
        record.step(step=1)
    with pytest.raises(RecordError, match="has ended"):
        record.step(step=2)
    record.end()
    assert len(read_run(path).steps) == 1


def test_rows_arrive_in_batches(path):
    record = RecordWriter(path, every=4, seconds=1e9)
    arrived = []
    for step in range(1, 10):
        record.step(step=step)
        arrived.append(len(read_run(path).steps))
    record.end()
    assert arrived == [0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert len(read_run(path).steps) == 9


def test_no_row_waits_longer_than_seconds(path):
    record = RecordWriter(path, every=10**9, seconds=0.0)
    record.step(step=1)
    assert len(read_run(path).steps) == 1
    record.end()


def test_deferred_steps_are_read_once_a_batch_and_stand_in_their_order(path):
    batches = []

    def read(held):
        batches.append([*held])
        return [{"step": step, "norm": 2.0 * step, "clipped": step == 2} for step in held]

    with RecordWriter(path, every=4, seconds=1e9) as record:
        record.defer(1, read)
        record.step(step=10, norm=1.0)
        record.defer(2, read)
        assert batches == []
        assert record.counts == {"steps": 3, "clipped": 0, "skipped": 0}
        record.event("note", "a row that is not a step fills a batch too")
        assert batches == [[1, 2]]
        record.defer(3, read)
    run = read_run(path)
    assert batches == [[1, 2], [3]]
    assert run.steps.tolist() == [1, 10, 2, 3]
    assert run.column("norm").tolist() == [2.0, 1.0, 4.0, 6.0]
    assert run.end is not None
    assert (run.end.steps, run.end.clipped) == (4, 1)
    record.defer(4, read)  # After the end it is left out.
    assert len(read_run(path).steps) == 4


def test_a_batch_that_cannot_be_read_leaves_the_other_rows(path):
    def fail(_):
        raise RuntimeError("the device has failed")

    record = RecordWriter(path, seconds=1e9)
    record.defer(1, fail)
    record.event("note", "this stays")
    with pytest.raises(RuntimeError, match="device has failed"):
        record.flush()
    record.end("error")
    run = read_run(path)
    assert len(run.steps) == 0
    assert [event.text for event in run.events] == ["this stays"]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX's")
def test_kill_9_loses_at_most_a_batch(path):
    code = """if True:
        import sys
        from gradclip.record import RecordWriter
        record = RecordWriter(sys.argv[1], every=50, seconds=1e9)
        step = 0
        while True:
            step += 1
            record.step(step=step, norm=float(step))
            if step % 7 == 0:
                print(step, flush=True)
    """
    done = 0
    with in_child(code, path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while done <= 500:
            done = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        done = max([done, *(int(line) for line in child.stdout if line.endswith("\n"))])
    assert child.returncode == -signal.SIGKILL
    run = read_run(path)
    assert run.end is None
    assert len(run.steps) > done - 50
    np.testing.assert_array_equal(run.column("norm"), run.steps)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_writes_nothing(path):
    code = """if True:
        import os, sys
        from gradclip.record import RecordWriter
        record = RecordWriter(sys.argv[1])
        record.step(step=1)
        if os.fork() == 0:
            record.step(step=2)
            record.end("error: the child")
            sys.exit()
        os.wait()
        record.end()
    """
    assert in_child(code, path).wait(timeout=60) == 0
    run = read_run(path)
    assert run.steps.tolist() == [1]
    assert run.end is not None
    assert run.end.status == "ok"


def test_memory_does_not_grow_with_the_steps(path):
    with RecordWriter(path, seconds=1e9) as record:
        tracemalloc.start()
        try:
            for step in range(1, 5001):
                record.step(step=step, norm=1.0, norms=[1.0] * 20)
            grown = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert path.stat().st_size > 1_000_000
    assert grown < 200_000


def test_it_can_be_read_while_it_is_written(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = RecordWriter(path, every=1)
        record.step(step=1, norm=2.0)
        assert read_run(path).column("norm").tolist() == [2.0]
        record.end()


def test_importing_the_record_imports_no_framework():
    code = (
        "import gradclip.record, sys; print(*{'torch', 'jax', 'bokeh', 'pandas'} & {*sys.modules})"
    )
    child = in_child(code, stdout=subprocess.PIPE)
    assert child.communicate(timeout=60)[0].split() == []
    assert child.returncode == 0


def test_parquet_does_not_replace_another_file(path):
    pytest.importorskip("pyarrow")
    RecordWriter(path).end()
    before = path.read_bytes()
    with pytest.raises(RecordError, match="is not a Parquet file, and stays as it is: give"):
        read_run(path).to_parquet(path)
    assert path.read_bytes() == before
