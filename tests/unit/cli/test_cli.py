"""The command line: what it offers, and how it says what went wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from gradclip import __version__, kernel
from gradclip.cli import app
from gradclip.cli.demo import _script
from gradclip.cli.doctor import _device
from gradclip.diagnosis import KINDS
from gradclip.diagnosis.links import DOCS
from gradclip.kernel import KernelStatus
from gradclip.method.catalogue import CATALOGUE, PURPOSES, grouped
from gradclip.method.docstring import read_docstring
from gradclip.record import RecordWriter

ROOT = Path(__file__).parents[3]

FLAGS = {
    "": {"--version", "--install-completion", "--show-completion", "--help"},
    "run": {
        "--clip",
        "--record",
        "--overwrite",
        "--append",
        "--nonfinite",
        "--max-skips",
        "--take-over",
        "--samples",
        "--samples-when",
        "--sink",
        "-m",
        "--help",
    },
    "watch": {"--once", "--json", "--every", "--help"},
    "report": {"--output", "-o", "--follow", "--every", "--json", "--help"},
    "export": {"--output", "-o", "--panel", "--width", "--height", "--dpi", "--json", "--help"},
    "diagnose": {"--json", "--help"},
    "explain": {"--json", "--help"},
    "advise": {"--optimizer", "--json", "--help"},
    "import": {
        "--output",
        "-o",
        "--norm",
        "--loss",
        "--lr",
        "--step",
        "--overwrite",
        "--json",
        "--help",
    },
    "tune": {
        "--steps",
        "--thresholds",
        "--policy",
        "--lr-factors",
        "--lr-flag",
        "--rungs",
        "--budget",
        "--jobs",
        "--out",
        "--fresh",
        "--json",
        "-m",
        "--help",
    },
    "methods": {"--markdown", "--json", "--help"},
    "doctor": {"--json", "--help"},
    "demo": {"--out", "--steps", "--seed", "--clip", "--json", "--help"},
}


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*args: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*map(str, args)], prog_name="gradclip")
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return run


COMMANDS = sorted(FLAGS.keys() - {""})
VALUES = "PATH|N|NUMBER|TEXT|KIND:WHERE"
"""The words of the help for the value of an option."""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_examples_that_can_be_typed(command: str, invoke) -> None:
    code, out, _ = invoke(command, "--help")
    examples = re.findall(r"^  gradclip (.*)$", re.split(r"\nExamples?:\n", out)[1], re.MULTILINE)
    assert code == 0
    assert 1 <= len(examples) <= 2
    for example in examples:
        assert example.split()[0] == command
        own = re.split(r" \S+\.py\b| -m \S+", example)[0]  # The rest goes to the script.
        flags = {word for word in own.split() if word.startswith("-")}
        assert flags <= FLAGS[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_what_to_type(command: str, invoke) -> None:
    """And not the types of Python's; no word and no name of a file is cut."""
    _, out, _ = invoke(command, "--help")
    assert not re.search(r"[<>{}]|list\[", out.replace("x>=", ""))
    assert not re.search(r"\w-$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80
    assert "\N{NON-BREAKING HYPHEN}" not in out
    usage = out.splitlines()[0]
    for name in re.findall(r"^  ([A-Z]+(?:\.\.\.)?)  ", out, re.MULTILINE):
        assert re.search(rf" \[?{re.escape(name)}\]?( |$)", usage)
    rows = re.findall(
        r"^  (-\S+(?:, -\S+)?)( \S+)?(?=  |$)", out.partition("\nOptions:\n")[2], re.M
    )
    assert rows
    for _, value in rows:
        assert re.fullmatch(rf"( ({VALUES}))?", value)


def test_an_example_is_one_line_in_a_narrow_terminal() -> None:
    command = [sys.executable, "-m", "gradclip", "report", "--help"]
    narrow = os.environ | {"COLUMNS": "50"}
    out = subprocess.run(command, env=narrow, capture_output=True, text=True, check=True).stdout
    example = "  gradclip report runs/a.jsonl runs/b.jsonl -o report.html"
    assert example in out.splitlines()
    assert max(len(line) for line in out.splitlines() if line != example) <= 50


def test_the_help_of_all_commands_cuts_no_summary(invoke) -> None:
    _, out, _ = invoke("--help")
    rows = re.findall(r"^  \w+  +(\S.*)$", out.partition("\nCommands:\n")[2], re.MULTILINE)
    assert len(rows) == len(COMMANDS)
    assert all(re.fullmatch(r"[A-Z].*[^.]\.", row) for row in rows)


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_those_of_the_help(command: str, invoke) -> None:
    code, out, _ = invoke(*command.split(), "--help")
    assert code == 0
    options = re.split(r"\nCommands:\n|\nExamples?:\n", out.partition("\nOptions:\n")[2])[0]
    found = re.findall(r"^  (-\S+?)(?:, (-\S+))?(?= |$)", options, re.MULTILINE)
    assert {flag for pair in found for flag in pair if flag} == FLAGS[command]


def test_every_command_is_in_the_help_and_in_the_table(invoke) -> None:
    _, out, _ = invoke("--help")
    commands = re.findall(r"^  (\w+)  ", out.partition("\nCommands:\n")[2], re.MULTILINE)
    assert set(commands) == FLAGS.keys() - {""}


def _script_of_the_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_commands_is_what_the_commands_say() -> None:
    commands = _script_of_the_docs("commands")
    page = (ROOT / "docs" / "cli.md").read_text()
    assert commands.with_commands(page) == page, "run make docs-cli"


def test_the_page_of_the_commands_has_every_flag_and_no_other() -> None:
    page = (ROOT / "docs" / "cli.md").read_text().partition("<!-- The end of the commands. -->")[0]
    sections = dict(re.findall(r"^## gradclip (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert sections.keys() == FLAGS.keys() - {""}
    for command, section in sections.items():
        rows = re.findall(r"^\| (`.*?) \| ", section, re.MULTILINE)
        flags = set(re.findall(r"`(-[^`]+)`", " ".join(rows)))
        assert flags | {"--help"} == FLAGS[command], command


def test_version(invoke) -> None:
    assert invoke("--version") == (0, f"gradclip {__version__}\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert __version__ == project["project"]["version"]


# ---- Faults of the user: one line, exit code 2

FAULTS = {
    "no such method": (
        ["run", "--clip", "nrm:1", "s.py"],
        "method='nrm' is not usable: did you mean 'norm'? the methods",
    ),
    "a wrong limit": (["run", "--clip", "norm:-1", "s.py"], "max_norm=-1 is not usable: "),
    "no policy": (["run", "--clip", "", "s.py"], "policy='' is not usable: "),
    "no such script": (["run", "t.py"], "TARGET='t.py' is not usable: there is no such file"),
    "no such module": (
        ["run", "-m", "no_such"],
        "TARGET='no_such' is not usable: there is no such mod",
    ),
    "no such submodule's parent": (["run", "-m", "no.such"], "TARGET='no.such' is not usable: "),
    "nonfinite": (
        ["run", "--clip", "norm:1", "--nonfinite", "x", "s.py"],
        "--nonfinite='x' is not ",
    ),
    "nonfinite alone": (
        ["run", "--nonfinite", "zero", "s.py"],
        "--nonfinite='zero' is not usable: w",
    ),
    "max-skips alone": (
        ["run", "--max-skips", "3", "s.py"],
        "--max-skips=3 is not usable: without ",
    ),
    "no such sink": (
        ["run", "--sink", "visdom:x", "s.py"],
        "sink='visdom:x' is not usable: give one of tensorboard:WHERE (a folder, for event",
    ),
    "no place for the record": (["run", "--record", ".", "s.py"], ". cannot be written"),
    "a record in place of the script": (
        ["run", "--record", "s.py", "s.py"],
        "--record='s.py' is not usable: the path is the script; give another path",
    ),
    "a record in place of another file": (
        ["run", "--record", "s.py", "--overwrite", "-m", "json.tool"],
        "s.py is not a gradclip record, and a record would spoil the file: give another path",
    ),
    "overwrite alone": (
        ["run", "--overwrite", "s.py"],
        "--overwrite=True is not usable: without --record the file is new; give --record",
    ),
    "append alone": (["run", "--append", "s.py"], "--append=True is not usable: without --rec"),
    "overwrite and append": (
        ["run", "--record", "ok.jsonl", "--overwrite", "--append", "s.py"],
        "--overwrite=True is not usable: --append keeps what it erases: give one",
    ),
    "a page in place of a record": (
        ["report", "ok.jsonl", "-o", "ok.jsonl"],
        "ok.jsonl holds something else, such as a record or a script, and stays as it is: give",
    ),
    "a page in place of a script": (["report", "ok.jsonl", "-o", "s.py"], "s.py holds something"),
    "no such record": (
        ["report", "r.jsonl"],
        "r.jsonl cannot be read (No such file or directory): ",
    ),
    "no record": (["report", "s.py"], "s.py is not a gradclip record: give a file that"),
    "no such record to diagnose": (["diagnose", "r.jsonl"], "r.jsonl cannot be read (No such "),
    "no record to diagnose": (["diagnose", "s.py"], "s.py is not a gradclip record: give a"),
    "no such record to advise on": (["advise", "r.jsonl"], "r.jsonl cannot be read (No such "),
    "nothing to advise on": (["advise", "ok.jsonl"], "ok.jsonl has no finite norm above zero to "),
    "no place for the report": (
        ["report", "ok.jsonl", "-o", "s.py/r.html"],
        "s.py/r.html cannot be",
    ),
    "no such format": (
        ["export", "ok.jsonl", "-o", "f.doc"],
        "out='f.doc' is not usable: end its name in one of .svg, .pdf, .png",
    ),
    "no such panel": (["export", "ok.jsonl", "--panel", "x"], "panel='x' is not usable: choose"),
    "no place for the figure": (
        ["export", "ok.jsonl", "-o", "s.py/f.svg"],
        "s.py/f.svg cannot be written (",
    ),
    "no such script to tune": (["tune", "t.py"], "TARGET='t.py' is not usable: there is no such"),
    "a wrong threshold": (
        ["tune", "--thresholds", "1,-1", "s.py"],
        "--thresholds='1,-1' is not usable: give numbers above 0",
    ),
    "a wrong factor": (
        ["tune", "--lr-factors", "x", "s.py"],
        "--lr-factors='x' is not usable: give numbers above 0",
    ),
    "a tuning of no method": (
        ["tune", "--policy", "nrm:1", "s.py"],
        "method='nrm' is not usable: did you mean 'norm'? the methods",
    ),
    "a budget without a unit": (
        ["tune", "--budget", "10", "s.py"],
        "--budget='10' is not usable: give minutes or steps: 10m or 20000steps",
    ),
    "a budget for no run": (
        ["tune", "--budget", "10steps", "s.py"],
        "--budget='10steps' is not usable: give at least 60 steps",
    ),
    "no such rate to tune": (
        ["tune", "--lr-flag", "--lr", "s.py"],
        "--lr-flag --lr is not usable: the script's arguments have it 0 times",
    ),
    "no such explanation": (
        ["methods", "nrm"],
        "method='nrm' is not usable: did you mean 'norm'? the methods are ",
    ),
    "no such finding": (
        ["explain", "explode"],
        "KIND='explode' is not usable: did you mean 'exploding'? the kinds are exploding, van",
    ),
    "nothing like a finding": (["explain", "x"], "KIND='x' is not usable: the kinds are explodi"),
    "a demo of no method": (
        ["demo", "--clip", "nrm:1"],
        "method='nrm' is not usable: did you mean 'norm'? the methods",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, invoke, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("print('ran')")
    RecordWriter(tmp_path / "ok.jsonl").end()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    args, text = FAULTS[fault]
    code, out, err = invoke(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"gradclip: {text}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


TAKES_RUN = {
    "report": ["report", "bad"],
    "export": ["export", "bad"],
    "watch": ["watch", "bad", "--once"],
    "watch in JSON": ["watch", "bad", "--once", "--json"],
    "diagnose": ["diagnose", "bad"],
    "diagnose in JSON": ["diagnose", "bad", "--json"],
    "advise": ["advise", "bad"],
    "two reported": ["report", "good.jsonl", "bad"],
    "two exported": ["export", "good.jsonl", "bad"],
}
HEADER = b'{"kind":"header","schema":1}\n'
BAD = {
    "missing": (None, "bad cannot be read (No such file or directory): give a file that"),
    "a folder": ("folder", "bad cannot be read (Is a directory): give a file that"),
    "empty": (b"", "bad is empty: give a file that"),
    "foreign": (b"a,b\n1,2\n", "bad is not a gradclip record: give a file that"),
    "JSON": (b'{"a": 1}\n', "bad is not a gradclip record (no whole header): give a file"),
    "binary": (bytes(range(256)) * 99, "bad is not a gradclip record: give a file that"),
    "binary with a brace": (b"{" + bytes(range(256)), "bad is not a gradclip record (no whole"),
    "newer": (b'{"kind":"header","schema":99}\n', "bad has schema 99, and this gradclip reads"),
    "damaged": (HEADER + b'here\n{"kind":"step","step":1}\n', "bad, line 2 is damaged ("),
    "two in one": (HEADER + HEADER, "bad, line 2 is damaged (a second header"),
}


@pytest.mark.parametrize("command", TAKES_RUN)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_one_line(command: str, bad: str, invoke, tmp_path: Path) -> None:
    content, text = BAD[bad]
    if content == "folder":
        (tmp_path / "bad").mkdir()
    elif content is not None:
        (tmp_path / "bad").write_bytes(content)
    with RecordWriter(tmp_path / "good.jsonl") as record:
        record.step(step=1, norm=1.0)
    before = sorted(tmp_path.iterdir())
    code, out, err = invoke(*TAKES_RUN[command])
    assert (code, out) == (2, "")
    assert err.startswith(f"gradclip: {text}")
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


USAGE = {
    "a wrong flag": ["run", "--clp", "norm:1", "s.py"],
    "a negative number": ["run", "--clip", "norm:1", "--max-skips", "-1", "s.py"],
    "no script": ["run"],
    "no run": ["report"],
    "no run to diagnose": ["diagnose"],
    "no run to watch": ["watch"],
    "too often": ["watch", "ok.jsonl", "--every", "0"],
    "no run to export": ["export"],
    "no run to advise on": ["advise"],
    "nothing to tune": ["tune"],
    "no run at a time": ["tune", "--jobs", "0", "s.py"],
    "no such command": ["rum", "s.py"],
    "no step": ["demo", "--steps", "0"],
}


@pytest.mark.parametrize("fault", USAGE)
def test_wrong_usage_says_so(fault: str, invoke, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("print('ran')")
    code, out, err = invoke(*USAGE[fault])
    assert (code, out) == (2, "")
    assert "\nError: " in err
    assert "Traceback" not in err


EXTRAS = {
    "torch": (["run", "s.py"], "torch]'"),
    "torch, to tune": (["tune", "s.py"], "torch]'"),
    "bokeh": (["report", "ok.jsonl"], "report]'"),
    "matplotlib": (["export", "ok.jsonl"], "figure]'"),
    "torch and demo": (["demo"], "demo]'"),
}


@pytest.mark.parametrize("missing", EXTRAS)
def test_a_missing_extra_is_named(missing: str, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("print('ran')")
    with RecordWriter(tmp_path / "ok.jsonl") as record:
        record.step(step=1, norm=1.0)
    args, text = EXTRAS[missing]
    code = (
        f"import sys; sys.modules[{re.split(' |,', missing)[0]!r}] = None\n"
        f"from gradclip.cli import app; app({args!r})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("gradclip: ")
    assert ran.stderr.endswith(f"pip install 'gradclip[{text}\n")
    assert ran.stderr.count("\n") == 1


# ---- What the commands print


def test_methods_lists_each_in_80_columns_by_purpose(invoke) -> None:
    code, out, _ = invoke("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for name, recipe in CATALOGUE.items():
        assert re.search(rf"^{re.escape(name)} ", out, re.MULTILINE)
        assert " ".join(recipe.summary.split()) in words
    assert "…" not in out
    first = [line.split(" ")[0] for line in out.splitlines() if line[:1].strip()]
    listed = [name for name in first if name in CATALOGUE]
    assert listed == [row.name for rows in grouped().values() for row in rows]
    headings = [line for line in out.splitlines() if line in {p.heading for p in PURPOSES.values()}]
    assert headings == [purpose.heading for purpose in PURPOSES.values()]


def test_methods_explains_each(invoke) -> None:
    for name, recipe in CATALOGUE.items():
        code, out, _ = invoke("methods", name)
        assert code == 0
        assert max(map(cell_len, out.splitlines())) <= 80
        words = " ".join(out.split())
        heading = PURPOSES[recipe.purpose].heading
        assert words.startswith(f"{name} for example {recipe.example} {heading}")
        assert f"Paper {' '.join(recipe.paper.split())}" in words
        doc = read_docstring(recipe.function)
        for part in (*doc.formula, doc.use, doc.avoid, *doc.notes, doc.source):
            assert " ".join(part.split()) in words
        for argument in doc.arguments:
            assert re.search(rf"^  {argument} ", out, re.MULTILINE)
        for found in re.findall(r"arXiv:([\d.]+)", recipe.paper):
            assert f"https://arxiv.org/abs/{found}" in out


def test_doctor_says_what_runs(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    import bokeh
    import numpy
    import torch

    library = "/a/very/long/path" * 12 + "/gradclip_native.so"
    monkeypatch.setattr(kernel, "status", lambda: KernelStatus(True, "avx2", "", library))
    code, out, _ = invoke("doctor")
    assert code == 0
    assert library in "".join(out.split())  # Folded, not cut.
    assert "yes: avx2" in out
    assert "fold yes: fused SGD, Adam, AdamW, Adagrad on cpu" in " ".join(out.split())
    for version in (__version__, numpy.__version__, torch.__version__, bokeh.__version__):
        assert version in out


def test_doctor_says_what_does_not_run_and_why(
    invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = KernelStatus(False, "none", "there was no C compiler.", None)
    monkeypatch.setattr(kernel, "status", lambda: status)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    (tmp_path / "pandas.py").write_text("import no_such_thing")
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    (tmp_path / "matplotlib.py").write_text("raise OSError('no such library')")
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = invoke("doctor")
    words = " ".join(out.split())
    assert code == 0
    assert "C kernel NO: there was no C compiler. Until then NumPy and torch" in words
    assert "bokeh NO, for report, demo: pip install 'gradclip[report]'" in words
    assert "pandas NO: installed but broken: No module named 'no_such_thing'" in words
    assert "matplotlib NO: installed but broken: OSError: no such library" in words


def test_doctor_says_that_nothing_folds(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._fused_adamw_", lambda *_, **__: None)  # As one that ignores it.
    _, out, _ = invoke("doctor")
    assert "fused SGD, Adam, Adagrad on cpu" in " ".join(out.split())
    monkeypatch.setattr("gradclip.torch.step.fused.seen_on", lambda _: [])
    _, out, _ = invoke("doctor")
    assert "fold NO: no fused optimizer takes the clip factor" in " ".join(out.split())


@pytest.mark.parametrize(
    ("cards", "apple", "said"),
    [(["H200", "H200"], False, ", H200, H200"), ([], True, ", Apple GPU"), ([], False, ", no acc")],
)
def test_doctor_names_the_devices(cards: list[str], apple: bool, said: str) -> None:
    """No machine of ours has all of them, so a stand-in answers in place of torch."""
    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(cards),
            device_count=lambda: len(cards),
            get_device_name=lambda i: cards[i],
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: apple)),
        get_num_threads=lambda: 4,
    )
    assert _device(torch).startswith(said)  # type: ignore[arg-type]


def test_export_says_that_letters_are_missing(invoke, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "\N{RUNIC LETTER FEHU FEOH FE F}.jsonl") as record:
        record.step(step=1, norm=1.0)
    with RecordWriter(tmp_path / "ok.jsonl") as record:
        record.step(step=1, norm=1.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = invoke("export", *names, "--panel", "norm", "-o", "f.png", "--dpi", "50")
    assert (code, out) == (0, "f.png\n")
    assert re.fullmatch(r"gradclip: warning: .* letters that the figure's font lacks.*\n", err)


def test_report_prints_the_page(invoke, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "ok.jsonl") as record:
        record.step(step=1, norm=1.0)
    code, out, err = invoke("report", "ok.jsonl", "-o", "new/page.html")
    assert (code, err) == (0, "")
    assert out == (
        "ok.jsonl: No fault in 1 step, too few for a judgement; the record has no loss.\n"
        "new/page.html\n"
    )
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!")


def _explodes(path: Path) -> None:
    """Write the record of a run that explodes at step 61."""
    script = ["my train.py", "--lr", "1"]
    command = ["gradclip", "run", "--record", str(path), *script]
    with RecordWriter(path, script=script, command=command) as record:
        for step in range(1, 101):
            norm = 1.0 + step % 5 / 10 if step < 61 else min(2.0 ** (step - 60), 1e6)
            record.step(step=step, norm=norm, loss=3 - step / 100 if step < 61 else 10.0)


def test_diagnose_advise_and_report_open_with_the_verdict(
    invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _explodes(Path("a b.jsonl"))
    with RecordWriter("ok.jsonl") as record:
        for step in range(1, 101):
            record.step(step=step, norm=1.0 + step % 5 / 10, loss=3 - step / 100)
    lines = invoke("diagnose", "a b.jsonl")[1].splitlines()
    assert lines[0] == "The run exploded at step 62: its norm grew 64-fold in 6 steps."
    assert lines[1] == "Next: gradclip advise 'a b.jsonl'"
    assert "  More: gradclip explain exploding" in lines
    told = json.loads(invoke("diagnose", "a b.jsonl", "--json")[1])
    assert [*told][:2] == ["verdict", "next"]
    assert [told["verdict"], f"Next: {told['next']}"] == lines[:2]
    assert told["findings"][0]["docs"].endswith("/findings.html#exploding")
    reported = invoke("report", "a b.jsonl", "ok.jsonl")[1].splitlines()
    assert reported[0] == f"a b.jsonl: {lines[0]} {lines[1]}"
    assert reported[1] == "ok.jsonl: Healthy: 100 steps, the loss fell from 2.945 to 2.095, " + (
        "nothing to do."
    )
    told = json.loads(invoke("report", "a b.jsonl", "ok.jsonl", "--json")[1])
    assert [row["run"] for row in told["verdicts"]] == ["a b.jsonl", "ok.jsonl"]
    assert told["verdicts"][0]["verdict"] == lines[0]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert lines[0] in page.partition("<h1>")[0]
    advised = invoke("advise", "a b.jsonl")[1].splitlines()
    assert advised[0].startswith("Use auto, and ask again: ")
    assert advised[1] == (
        "Next: gradclip run --clip 'auto' --record 'a b-auto.jsonl' 'my train.py' --lr 1"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_explain_has_each_kind(kind: str, invoke) -> None:
    code, out, _ = invoke("explain", kind)
    assert code == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.splitlines()[-1] == f"Docs: {DOCS}findings.html#{kind}"
    said = " ".join(out.split())
    for text in (KINDS[kind].title, KINDS[kind].signs, KINDS[kind].cause, KINDS[kind].remedy):  # type: ignore[index]
        assert text in said
    (told,) = json.loads(invoke("explain", kind, "--json")[1])["kinds"]
    assert told["kind"] == kind
    assert invoke("explain", kind.replace("-", "_").upper())[1] == out


def test_explain_lists_all_kinds(invoke) -> None:
    code, out, _ = invoke("explain")
    assert code == 0
    rows = [re.split(r" {2,}", line.rstrip(), maxsplit=1) for line in out.splitlines()]
    assert rows[: len(KINDS)] == [[kind, row.title] for kind, row in KINDS.items()]


def test_the_page_of_the_findings_is_the_table() -> None:
    findings = _script_of_the_docs("findings")
    assert (ROOT / "docs" / "findings.md").read_text() == findings.page(), "make docs-findings"


def test_the_example_is_found_in_a_source_tree_and_beside_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _script().samefile(ROOT / "examples" / "char_lm.py")
    installed = tmp_path / "site-packages" / "gradclip"
    module = sys.modules["gradclip.cli.demo"]
    monkeypatch.setattr(module, "__file__", str(installed / "cli" / "demo.py"))
    with pytest.raises(Exception, match=r"examples/char_lm\.py is in none of"):
        _script()
    (installed / "examples").mkdir(parents=True)
    (installed / "examples" / "char_lm.py").touch()
    assert _script() == installed / "examples" / "char_lm.py"


# ---- For programs


def test_json_is_one_line(invoke, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "ok.jsonl") as record:
        for step in range(1, 60):
            record.step(step=step, norm=1.0 + step % 3, loss=float("nan"))
    keys = {
        "report ok.jsonl --json": {"verdicts", "report", "runs"},
        "export ok.jsonl --json": {"figure", "runs", "panels"},
        "diagnose ok.jsonl --json": {"verdict", "next", "run", "findings", "samples"},
        "advise ok.jsonl --json": {
            *("verdict", "next", "recommended", "settled", "best", "trial", "reason", "command"),
            *("ask_again", "arms", "policies"),
        },
        "explain --json": {"kinds"},
        "explain plateau --json": {"kinds"},
        "methods --json": {"methods"},
        "methods zclip --json": {"methods"},
    }
    for command, wanted in keys.items():
        code, out, _ = invoke(*command.split())
        assert (code, out.count("\n")) == (0, 1), command
        assert json.loads(out, parse_constant=pytest.fail).keys() == wanted, command
    for command in ("watch ok.jsonl --once --json", "doctor --json"):
        code, out, _ = invoke(*command.split())
        assert (code, out.count("\n")) == (0, 1), command
        assert json.loads(out, parse_constant=pytest.fail)
    assert len(json.loads(invoke("methods", "--json")[1])["methods"]) == len(CATALOGUE)


# ---- Completion

# Each script asks as the shell asks, and prints the offers for one line on one line.
ASK = {
    "bash": """
        source "$HOME/.bashrc" 2>/dev/null || true
        offers() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            "$(complete -p gradclip | sed 's/.*-F \\([^ ]*\\).*/\\1/')" "$1"
            echo "${COMPREPLY[*]}"
        }
    """,
    # The menu of zsh needs a terminal; `_arguments` is what it would fill the menu from.
    "zsh": """
        compdef() { :; }
        source "$HOME/.zfunc/_gradclip"
        _arguments() {
            print -r -- "$*" | grep -oE '[( ]"[^"]*"' | sed -E 's/^."(.*)"$/\\1/; s/\\\\+:/:/g' |
                paste -sd ' '
        }
        offers() { words=("$@"); CURRENT=$#; _gradclip_completion }
    """,
    "fish": """
        source "$HOME/.config/fish/completions/gradclip.fish"
        function offers; complete -C "$argv" | cut -f 1 | paste -sd ' '; end
    """,
}
QUIET = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}


@pytest.mark.parametrize("shell", ASK)
def test_the_shell_completes(shell: str, tmp_path: Path) -> None:
    """As the shell does: install it, read what was installed, and ask for what it offers."""
    program = shutil.which(shell)
    command = Path(sys.executable).parent / "gradclip"
    if program is None or not command.exists():
        pytest.skip(f"needs {shell} and the installed command")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path)}
    installed = subprocess.run(
        [command, "--install-completion", shell],
        env=environment | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "completion installed" in installed.stdout
    script = f"""
        {ASK[shell]}
        offers gradclip me
        offers gradclip methods zcl
        offers gradclip explain ex
        offers gradclip run --clip norm
        offers gradclip export --panel dis
    """
    told = subprocess.run(
        [program, QUIET[shell], "-c", script],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    examples = sorted(row.example for row in CATALOGUE.values() if row.example.startswith("norm"))
    assert [" ".join(sorted(line.split())) for line in told.stdout.splitlines()] == [
        "methods",
        "zclip",
        "exploding",
        " ".join(examples),
        "distribution",
    ], told.stderr
