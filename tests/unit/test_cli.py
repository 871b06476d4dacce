"""The command line: what it offers, and how it says what went wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradclip import __version__, kernel
from gradclip.catalogue import CATALOGUE
from gradclip.cli import app
from gradclip.cli.demo import _script
from gradclip.kernel import KernelStatus
from gradclip.record import RecordWriter

FLAGS = {
    "": {"--version", "--help"},
    "run": {"--clip", "--record", "--nonfinite", "--max-skips", "-m", "--help"},
    "report": {"--output", "-o", "--help"},
    "diagnose": {"--json", "--help"},
    "advise": {"--optimizer", "--json", "--help"},
    "tune": {
        "--steps",
        "--thresholds",
        "--policy",
        "--lr-factors",
        "--lr-flag",
        "--rungs",
        "--jobs",
        "--out",
        "--fresh",
        "--json",
        "-m",
        "--help",
    },
    "methods": {"--markdown", "--help"},
    "doctor": {"--help"},
    "demo": {"--out", "--steps", "--seed", "--clip", "--help"},
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


@pytest.mark.parametrize("command", FLAGS)
def test_the_flags_are_those_of_the_help(command: str, invoke) -> None:
    code, out, _ = invoke(*command.split(), "--help")
    assert code == 0
    options = out.partition("\nOptions:\n")[2].partition("\nCommands:\n")[0]
    found = re.findall(r"^  (-\S+?)(?:, (--\S+))?(?= |$)", options, re.MULTILINE)
    assert {flag for pair in found for flag in pair if flag} == FLAGS[command]


def test_every_command_is_in_the_help_and_in_the_table(invoke) -> None:
    _, out, _ = invoke("--help")
    commands = re.findall(r"^  (\w+)  ", out.partition("\nCommands:\n")[2], re.MULTILINE)
    assert set(commands) == FLAGS.keys() - {""}


def test_version(invoke) -> None:
    assert invoke("--version") == (0, f"gradclip {__version__}\n", "")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
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
    "no place for the record": (["run", "--record", ".", "s.py"], ". cannot be written"),
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
    "no such rate to tune": (
        ["tune", "--lr-flag", "--lr", "s.py"],
        "--lr-flag --lr is not usable: the script's arguments have it 0 times",
    ),
    "no such explanation": (
        ["methods", "nrm"],
        "method='nrm' is not usable: did you mean 'norm'? the methods are ",
    ),
    "a demo of no method": (
        ["demo", "--clip", "nrm:1"],
        "method='nrm' is not usable: did you mean 'norm'? the methods",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, invoke, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("print('ran')")
    RecordWriter(tmp_path / "ok.jsonl").end()
    args, text = FAULTS[fault]
    code, out, err = invoke(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"gradclip: {text}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ok.jsonl", "s.py"]


USAGE = {
    "a wrong flag": ["run", "--clp", "norm:1", "s.py"],
    "a negative number": ["run", "--clip", "norm:1", "--max-skips", "-1", "s.py"],
    "no script": ["run"],
    "no run": ["report"],
    "no run to diagnose": ["diagnose"],
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


def test_methods_lists_each_in_80_columns(invoke) -> None:
    code, out, _ = invoke("methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for name, recipe in CATALOGUE.items():
        assert re.search(rf"^{re.escape(name)} ", out, re.MULTILINE)
        assert " ".join(recipe.summary.split()) in words
    assert "…" not in out


def test_methods_explains_each(invoke) -> None:
    for name, recipe in CATALOGUE.items():
        code, out, _ = invoke("methods", name)
        assert code == 0
        words = " ".join(out.split())
        assert words.startswith(f"{name} for example {recipe.example}")
        assert f"Paper: {' '.join(recipe.paper.split())}" in words
        assert "Args:" in words


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
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = invoke("doctor")
    words = " ".join(out.split())
    assert code == 0
    assert "C kernel NO: there was no C compiler. Until then NumPy and torch" in words
    assert "bokeh NO, for report, demo: pip install 'gradclip[report]'" in words
    assert "pandas NO: installed but broken: No module named 'no_such_thing'" in words


def test_doctor_says_that_nothing_folds(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._fused_adamw_", lambda *_, **__: None)  # As one that ignores it.
    _, out, _ = invoke("doctor")
    assert "fused SGD, Adam, Adagrad on cpu" in " ".join(out.split())
    monkeypatch.setattr("gradclip.torch.fold.seen_on", lambda _: [])
    _, out, _ = invoke("doctor")
    assert "fold NO: no fused optimizer takes the clip factor" in " ".join(out.split())


def test_report_prints_the_page(invoke, tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "ok.jsonl") as record:
        record.step(step=1, norm=1.0)
    assert invoke("report", "ok.jsonl", "-o", "new/page.html") == (0, "new/page.html\n", "")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!")


def test_the_example_is_found_in_a_source_tree_and_beside_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _script().samefile(Path(__file__).parents[2] / "examples" / "char_lm.py")
    installed = tmp_path / "site-packages" / "gradclip"
    module = sys.modules["gradclip.cli.demo"]
    monkeypatch.setattr(module, "__file__", str(installed / "cli" / "demo.py"))
    with pytest.raises(Exception, match=r"examples/char_lm\.py is in none of"):
        _script()
    (installed / "examples").mkdir(parents=True)
    (installed / "examples" / "char_lm.py").touch()
    assert _script() == installed / "examples" / "char_lm.py"
