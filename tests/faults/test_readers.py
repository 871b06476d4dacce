"""Mutated records, Parquet files and tuning states: a sentence and exit code 2, no traceback.

Each kind has a small sample here that runs with the ordinary tests, and the same test over at
least 10,000 files with the marker `faults`.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from gradclip.cli import app
from gradclip.errors import GradclipError
from gradclip.record import RecordWriter, read_run
from gradclip.show.json_line import json_line
from gradclip.tune.outcome import Outcome
from gradclip.tune.plan import Trial
from gradclip.tune.result import conclude
from gradclip.tune.state import State

from .mutate import mutated_bytes, mutated_json, mutated_lines

SAMPLE, MANY = 100, 10_000
SIZES = [SAMPLE, pytest.param(MANY, marks=pytest.mark.faults)]
QUICK = ("diagnose", "diagnose --json", "watch --once", "watch --once --json")
SLOW = ("advise", "advise --json")
DRAWN = ("report -o page.html", "export -o figure.svg --panel norm --panel layers",
         "export -o figure.svg --panel loss --panel coef --panel rate --panel distribution",
         "report --json -o page.html")  # fmt: skip
COMMAND = get_command(app)


def write_plain(path: Path) -> None:
    """Write a run whose norms spike, with norms by layer and an event."""
    with RecordWriter(path, policy="norm:1.0", command=["train.py"]) as record:
        record.optimizer("AdamW", [("a.w", (2, 3), "float32"), ("b", (1,), "float32")])
        record.event("script-clips", "train.py clips: clip_grad_norm_(…, 0.5)", step=3)
        for step in range(1, 61):
            norm = 30.0 if step in (20, 41) else 1.0 + step % 7 / 10
            record.step(
                step=step, time=0.1 * step, loss=3.0 / step, lr=0.1, norm=norm, clipped_norm=1.0,
                limit=1.0, coef=1 / norm, removed=1 - 1 / norm, cosine=1.0, clipped=norm > 1,
                ran="c-avx2", norms=[norm, 0.5],
            )  # fmt: skip


def write_wild(path: Path) -> None:
    """Write a run of two optimizers that diverges, with rows that hold inf and NaN."""
    with RecordWriter(path) as record:
        record.optimizer("SGD", [(f"layer{i}.w", (2, 2), "float32") for i in range(6)])
        record.optimizer("Adam", [("d.w", (2,), "float32")], policy="adagc")
        for step in range(1, 31):
            norm = 2.0 ** min(step, 25) if step < 28 else float("inf")
            norms = [norm * 4.0**i for i in range(6)]
            record.step(step=step, norm=norm, loss=norm, norms=norms, batch=32)
            record.step(step=step, optimizer=1, norm=1.0, skipped=step % 9 == 0, lr=0.1)
        record.end("error: ValueError: x")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bases")
    write_plain(folder / "plain.jsonl")
    write_wild(folder / "wild.jsonl")
    return sorted(folder.iterdir())


def run(command: str, path: Path) -> int:
    """Run a command on a file; fail on a traceback, an odd exit code or an unsafe character."""
    name, *options = command.split()
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            COMMAND.main([name, str(path), *options], prog_name="gradclip")
        except SystemExit as ended:
            code = int(ended.code or 0)
        else:
            code = 0
    for stream in streams:
        stream.seek(0)
    out, err = (stream.read() for stream in streams)
    assert code in (0, 2), (command, err)
    if code == 2:
        assert re.fullmatch(r"gradclip: .+\n", err), (command, err)
        assert out == "", (command, out)
    assert not unsafe_in(out + err), (command, unsafe_in(out + err))
    return code


def unsafe_in(text: str) -> list[str]:
    """Return the characters of a text that could control a terminal."""
    return [c for c in text if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}\u3000"]


@pytest.mark.parametrize("count", SIZES)
def test_mutated_records(
    count: int, bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    texts = [path.read_bytes() for path in bases]
    path, codes = tmp_path / "run.jsonl", [0, 0, 0]
    for seed in range(count):
        chance = random.Random(seed)
        path.write_bytes(mutated_lines(chance.choice(texts), chance))
        commands = [chance.choice(QUICK)]
        if seed % 20 == 0:
            commands.append(chance.choice(SLOW))
        if seed % 50 == 0:
            commands.append(chance.choice(DRAWN))
        for command in commands:
            codes[run(command, path)] += 1
        if (tmp_path / "page.html").exists():
            page = (tmp_path / "page.html").read_text("utf-8")
            assert not {"\x1b", "\u202e", "\x9b"} & {*page.split("<body", 1)[1]}, seed
            (tmp_path / "page.html").unlink()
    assert min(codes[0], codes[2]) > count / 10  # Both ways were taken.


def variants_of(path: Path, chance: random.Random) -> Iterator[bytes]:
    """Return a mutated Parquet file: its bytes, its metadata, or its columns."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    whole = path.read_bytes()
    table = parquet.read_table(path)
    while True:
        action = chance.random()
        if action < 0.5:
            yield mutated_bytes(whole, chance)
            continue
        changed = table
        if action < 0.8:
            about = mutated_json(json.loads(table.schema.metadata[b"gradclip"]), chance)
            changed = table.replace_schema_metadata({b"gradclip": json.dumps(about).encode()})
        else:
            name = chance.choice(table.column_names)
            index = table.column_names.index(name)
            column = [chance.choice([None, 0.5, 1.0, -1.0, 1e300, float("nan")])] * len(table)
            other = chance.choice(
                [column, ["x"] * len(table), [[1]] * len(table), [["a", None]] * len(table),
                 [None] * len(table), [{"a": 1}] * len(table), [True] * len(table)]
            )  # fmt: skip
            changed = changed.remove_column(index)
            if chance.random() < 0.8:
                changed = changed.append_column(name, pa.array(other))
        sink = pa.BufferOutputStream()
        parquet.write_table(changed, sink)
        yield sink.getvalue().to_pybytes()


@pytest.mark.parametrize("count", SIZES)
def test_mutated_parquet_files(
    count: int, bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    chance = random.Random(count)
    sources = []
    for base in bases:
        sources.append(tmp_path / f"{base.stem}.parquet")
        read_run(base).to_parquet(sources[-1])
    kept = [variants_of(source, chance) for source in sources]
    path, codes = tmp_path / "run.parquet", [0, 0, 0]
    for seed in range(count):
        path.write_bytes(next(kept[seed % 2]))
        codes[run(chance.choice(QUICK[:2]), path)] += 1
        if seed % 50 == 0:
            run(chance.choice(SLOW + DRAWN), path)
    assert min(codes[0], codes[2]) > count / 10


@pytest.mark.parametrize("count", SIZES)
def test_mutated_states_of_a_tuning(count: int, tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    trials = [Trial(p, f, n) for p in ("none", "norm:1.0") for f in (1.0, 2.0) for n in (20, 60)]
    state = State(path, {"steps": 60, "script": "a"})
    for index, trial in enumerate(trials):
        state.add(trial, Outcome("stable", 1.0 + index, 3.0, trial.steps, 0.1, 0.25))
    whole = path.read_bytes()
    read = refused = 0
    for seed in range(count):
        chance = random.Random(seed)
        changed = mutated_lines(whole, chance)
        path.write_bytes(changed)
        found = {}
        try:
            found = State(path, {"steps": 60, "script": "a"}).outcomes
        except GradclipError as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert said.endswith("give --fresh to begin again, or another --out")
            assert path.read_bytes() == changed  # What is refused is not overwritten.
            refused += 1
            continue
        read += 1
        known = {**dict.fromkeys(trials, Outcome("failed", 1.0, 1.0, 1, None, 0.0)), **found}
        try:
            result = conclude(trials[::2], known, (20, 60), ["a.py"])
        except GradclipError:  # A mutated state may say that every run failed.
            continue
        assert not unsafe_in(json_line(result.to_dict()))
    assert min(read, refused) > count / 20


# Names, in every output.

EVIL = "a\x1b[2J\u202e\x9bb\ud800\x07\n\u2028c"


def write_evil(path: Path) -> None:
    """Write a run whose every text could control a terminal."""
    with RecordWriter(path, policy=EVIL, command=[EVIL], versions={EVIL: EVIL}) as record:
        record.optimizer(EVIL, [(EVIL + str(i), (2, 2), EVIL) for i in range(6)], policy=EVIL)
        record.optimizer(EVIL, [(EVIL, (2, 2), EVIL)], policy=EVIL)
        record.event(EVIL, EVIL, step=2)
        for step in range(1, 41):
            bad = [EVIL + "1"] if step == 33 else []
            norms = [0.0, 1.0, 2.0, float("inf") if step == 35 else 3.0, 4.0, 5.0]
            record.step(step=step, norm=2.0, loss=1.0, nonfinite=bad, norms=norms, ran=EVIL)
            record.step(step=step, optimizer=1, norm=1.0, norms=[1.0])
        record.end(EVIL)


@pytest.mark.parametrize("command", [*QUICK, *SLOW, *DRAWN])
def test_names_are_shown_safely(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a\x1b[31m\u202eb\udcff.jsonl"
    write_evil(path)
    assert run(command, path) == 0
    for name in ("page.html", "figure.svg"):
        if (tmp_path / name).exists():
            text = (tmp_path / name).read_text("utf-8")
            assert not {"\x1b", "\u202e", "\x9b"} & {*text.split("<body", 1)[-1]}
    missing = tmp_path / "\x1b]0;title\x07\u202e\udcff"
    assert run(command, missing) == 2


def test_names_are_shown_safely_on_a_terminal(tmp_path: Path) -> None:
    from rich.console import Console

    from gradclip.live import LiveRun
    from gradclip.live.screen import Screen

    path = tmp_path / "a\x1b[31m\u202eb.jsonl"
    write_evil(path)
    live = LiveRun(path)
    while live.refresh():
        pass
    live.study()
    console = Console(width=120, height=50, force_terminal=True, color_system=None, record=True)
    with console.capture() as captured:
        console.print(Screen(live))
    assert "a\\x1b" in captured.get()
    assert not unsafe_in(re.sub(r"\x1b\[[0-9;]*m", "", captured.get()))


# Size and time.


def test_a_table_that_is_nearly_empty_is_refused(tmp_path: Path) -> None:
    """A record of 2 MB once asked for 44 GB: many short rows and one long one."""
    path = tmp_path / "run.jsonl"
    rows = ['{"kind":"header","schema":1}']
    rows += [f'{{"kind":"step","step":{step},"norms":[1]}}' for step in range(20_000)]
    rows += ['{"kind":"step","step":20000,"norms":[' + ",".join(["1"] * 300_000) + "]}"]
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(GradclipError, match=r"line 20002 is damaged \(the length of norms"):
        read_run(path)


def test_many_keys_take_no_table(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    rows = ['{"kind":"header","schema":1}']
    rows += [f'{{"kind":"step","step":{step},"key{step}":{step}}}' for step in range(3000)]
    path.write_text("\n".join(rows) + "\n")
    found = read_run(path)
    held = sum(column.values.nbytes for column in found._columns.values())
    assert held < 3 * path.stat().st_size
    np.testing.assert_array_equal(np.flatnonzero(found.seen("key7")), [7])
    assert found.column("key7")[7] == 7


def test_a_parquet_file_of_zeros_is_refused(bases: list[Path], tmp_path: Path) -> None:
    """Parquet writes a million equal values as a few bytes."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    read_run(bases[0]).to_parquet(tmp_path / "run.parquet")
    table = parquet.read_table(tmp_path / "run.parquet")
    much = pa.concat_tables([table.slice(0, 1)] * 4000).combine_chunks()
    much = pa.concat_tables([much] * 150).combine_chunks()
    parquet.write_table(much, tmp_path / "run.parquet")
    with pytest.raises(GradclipError, match=r"it says that it holds [\d,]+ values in"):
        read_run(tmp_path / "run.parquet")
