"""How `gradclip run` ends: true sentences, the next commands, and the exit code of a signal."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gradclip.cli.ending import FRAMEWORKS, GUIDE
from gradclip.diagnosis import PAGES
from gradclip.record import read_run

from .test_runner import TRAIN

ROOT = Path(__file__).resolve().parents[4]
Run = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


def said(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of gradclip's own, without its name."""
    lines = ran.stderr.splitlines()
    return [line.removeprefix("gradclip: ") for line in lines if line.startswith("gradclip: ")]


# ---- The next commands


@pytest.mark.parametrize(
    ("options", "steps", "next_ones"),
    [
        ([], 60, ["advise", "diagnose", "report"]),
        ([], 21, ["advise", "diagnose", "report"]),
        (["--clip", "norm:1"], 60, ["advise", "diagnose", "report"]),
    ],
)
def test_the_next_commands_can_be_typed_as_they_stand(
    options: list[str], steps: int, next_ones: list[str], write: Write, gradclip_run: Run,
    interpreter, tmp_path: Path,
) -> None:  # fmt: skip
    write(TRAIN + "import os; os.chdir('/')\n")
    ran = gradclip_run("--record", "-a b's.jsonl", *options, "script.py", steps)
    assert ran.returncode == 0, ran.stderr
    verdict, following, seen, *rest = said(ran)
    assert verdict.endswith(".")
    assert following.startswith("next: ")
    assert f"{steps} steps seen" in seen
    assert all(line.startswith("also: ") for line in rest)
    commands = [shlex.split(line.partition(": ")[2]) for line in (following, *rest)]
    assert [command[:2] for command in commands] == [["gradclip", name] for name in next_ones]
    for command in commands:
        assert interpreter.run(command[1:], tmp_path).returncode == 0


def test_the_next_commands_read_all_parts_of_a_run(write: Write, gradclip_run: Run) -> None:
    script = write(TRAIN + "open('run.jsonl', 'r+').truncate(10); optimizer.step()\n")
    ran = gradclip_run(script, 120)
    assert "also: gradclip diagnose run.2.jsonl" in said(ran), "the first part is no record now"
    script.write_text(TRAIN + "open('new.jsonl', 'a').write('{}\\n'); optimizer.step()\n")
    ran = gradclip_run("--record", "new.jsonl", script, 120)
    assert "record in new.2.jsonl" in ran.stderr
    assert "new.jsonl, line 103 is damaged" in said(ran)[0], "it is not judged, and that is said"
    assert "next: gradclip diagnose new.jsonl" in said(ran)


def test_a_record_that_cannot_be_read_again_has_no_next_command(
    write: Write, gradclip_run: Run
) -> None:
    write(TRAIN)
    assert len(said(gradclip_run("--record", "/dev/null", "script.py"))) == 1


# ---- The verdict


def test_a_script_that_fails_is_told_first_with_its_own_command(
    write: Write, gradclip_run: Run
) -> None:
    write(TRAIN.replace("mul(50)", "mul(1)") + "raise ValueError('no more data')\n")
    ran = gradclip_run("--clip", "norm:1", "script.py", 60)
    assert ran.returncode == 1
    assert said(ran)[:2] == [
        "The script ended with ValueError: no more data after step 60.",
        "next: gradclip run --record run.jsonl --clip norm:1 script.py 60",
    ]


def test_the_verdict_is_that_of_diagnose(
    write: Write, gradclip_run: Run, interpreter, tmp_path: Path
) -> None:
    write(TRAIN.replace("torch.ones(2, 3)", "torch.ones(2, 3) / (step != 40)"))
    ended = said(gradclip_run("script.py", 80))
    told = interpreter.run(["diagnose", "run.jsonl"], tmp_path).stdout.splitlines()
    assert ended[:2] == [told[0], told[1].replace("Next", "next")]
    assert "inf or NaN" in told[0]


def test_a_long_record_is_not_judged_and_the_run_says_how(write: Write, gradclip_run: Run) -> None:
    write("import gradclip.cli.ending as e; e.LARGEST = 10\n" + TRAIN)
    first, *following = said(gradclip_run("script.py", 60))
    assert "60 steps seen" in first
    assert following[0] == "next: gradclip diagnose run.jsonl"


def test_a_fault_of_the_verdict_does_not_change_the_end_of_the_run(
    write: Write, gradclip_run: Run
) -> None:
    """The record is damaged by the script itself, after its last step."""
    write(
        TRAIN + "optimizer.step = None\nopen('run.jsonl', 'r+b').write(b'{\"kind\":\"header\"}#')\n"
    )
    ran = gradclip_run("script.py", 300)
    assert ran.returncode == 0
    assert any("the run is not judged: " in line for line in said(ran)), said(ran)
    assert "300 steps seen" in ran.stderr


# ---- Runs without a step

NO_STEP = {
    "": ("ERROR: no step of any torch optimizer was seen, so nothing was", 3),
    "sys.exit(0)": ("ERROR: no step of any torch optimizer was seen before the script called s", 3),
    "sys.exit(4)": ("the script ended with exit code 4 before any torch optimizer made a step", 4),
    "1 / 0": ("the script ended with ZeroDivisionError before any torch optimizer made", 1),
    "raise KeyboardInterrupt": (
        "the run was interrupted before any torch optimizer made a st",
        130,
    ),
    "os.kill(os.getpid(), 15); time.sleep(60)": ("the run was killed by SIGTERM before any t", -15),
}
LOADED = {
    "sys.modules['keras'] = sys": f"The script has loaded Keras, .* {GUIDE}#keras",
    "sys.modules.update({'optax': sys, 'jax': sys})": f"loaded JAX, .* {GUIDE}#jax",
    "sys.modules['fastai.optimizer'] = sys": f"loaded fastai, .* {GUIDE}#fastai",
    "sys.modules['tensorflow'] = sys": f"loaded TensorFlow, .* {GUIDE}#tensorflow",
    "import numpy as np": f"loaded NumPy and not torch: {GUIDE}#numpy",
    "import numpy, torch": "is not a torch.optim.Optimizer, or in a process that it starts",
}


@pytest.mark.parametrize("statement", NO_STEP)
def test_each_run_without_a_step_gets_a_true_sentence(
    statement: str, write: Write, gradclip_run: Run, tmp_path: Path
) -> None:
    write(f"import os, sys, time\n{statement}\n")
    ran = gradclip_run("--clip", "norm:1", "script.py")
    text, code = NO_STEP[statement]
    line, *following = said(ran)
    assert line.startswith(text)
    assert "nothing was clipped or recorded" in line
    assert ran.returncode == code
    if code in (0, 3):
        assert following == ["next: gradclip explain no-steps"]
    elif code > 0:
        again = "gradclip run --record run.jsonl --clip norm:1 script.py"
        assert following == [f"next: {again}"], "the user's own command, as typed"
    else:
        assert following == [], "a process that a signal ends does not read its record"
    assert read_run(tmp_path / "run.jsonl").end is not None


@pytest.mark.parametrize("statement", LOADED)
def test_the_framework_that_trained_is_named(
    statement: str, write: Write, gradclip_run: Run
) -> None:
    write(f"import sys\n{statement}\n")
    line, _ = said(gradclip_run("script.py"))
    assert re.search(LOADED[statement], line)


def test_the_guide_has_the_section_of_each_framework() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / PAGES["no-steps"]).read_text(), re.MULTILINE)
    sections = {title.lower().replace(" ", "-") for title in titles}
    assert {section for _, section in FRAMEWORKS.values()} | {"numpy"} <= sections


def test_steps_in_a_forked_process_are_told(write: Write, gradclip_run: Run) -> None:
    write("import os\nif os.fork() == 0:\n" + TRAIN.replace("\n", "\n    ") + "\nelse: os.wait()\n")
    ran = gradclip_run("--clip", "norm:1", "script.py")
    line, following = said(ran)
    assert following == "next: gradclip explain no-steps"
    assert line.startswith("all optimizer steps were made in another process: clipped and not rec")
    assert ran.returncode == 3


# ---- Options after the script


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["script.py", "--clip", "norm:1", "--record=x", "--lr", "1"], ["--clip", "--record"]),
        (["--clip", "norm:1", "script.py", "--clip", "5"], []),
        (["script.py", "--", "--clip"], []),
    ],
)
def test_options_of_ours_after_the_script_are_named(
    args: list[str], named: list[str], write: Write, interpreter, tmp_path: Path
) -> None:
    write("import sys; print(sys.argv[1:])")
    ran = interpreter.run(["run", *args], tmp_path)
    notes = [line for line in said(ran) if line.startswith("note: ")]
    assert notes == [
        f"note: {name} stands after script.py, so it went to the script; for gradclip, put it "
        "before script.py" for name in named
    ]  # fmt: skip
    assert ran.stdout.strip() == str(args[args.index("script.py") + 1 :])


# ---- Signals

KILLED = """
import os, signal, time
{first}
if {forks}:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, {number})
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    os._exit(0)
assert signal.getsignal({number}) in (signal.SIG_DFL, globals().get("own"))
optimizer.step()
os.kill(os.getpid(), {number})
{then}
"""
OWN = "def own(*_): raise SystemExit(7)\nsignal.signal({number}, own)"


@pytest.mark.parametrize("number", [15, 1])
def test_a_signal_ends_the_record_and_then_the_process(
    number: int, write: Write, gradclip_run: Run, tmp_path: Path
) -> None:
    write(TRAIN + KILLED.format(first="", forks=False, number=number, then="time.sleep(60)"))
    ran = gradclip_run("script.py", 21)
    assert ran.returncode == -number
    name = {15: "SIGTERM", 1: "SIGHUP"}[number]
    assert said(ran)[0].startswith(f"killed by {name}: 1 optimizer hooked (SGD), 22 steps seen")
    run = read_run(tmp_path / "run.jsonl")
    assert run.end is not None
    assert (run.end.status, run.end.steps, len(run.steps)) == (f"error: killed by {name}", 22, 22)


def test_a_signal_ends_a_process_that_waits_in_c(
    write: Write, gradclip_run: Run, tmp_path: Path
) -> None:
    wait = "import ctypes; ctypes.CDLL(None).sem_wait(bytes(64))"  # It goes on after a handler.
    wait = f"import threading; threading.Timer(0.5, os.kill, (os.getpid(), 15)).start(); {wait}"
    write(TRAIN + "import os\n" + wait)
    assert gradclip_run("script.py").returncode == -15
    end = read_run(tmp_path / "run.jsonl").end
    assert end is not None
    assert end.status == "error: killed by SIGTERM"


def test_the_handlers_of_the_script_and_of_its_children_win(
    write: Write, gradclip_run: Run, tmp_path: Path
) -> None:
    own = OWN.format(number=15)
    write(TRAIN + KILLED.format(first=own, forks=False, number=15, then="time.sleep(60)"))
    ran = gradclip_run("script.py")
    assert ran.returncode == 7
    end = read_run(tmp_path / "run.jsonl").end
    assert end is not None
    assert (end.status, end.steps) == ("error: exit code 7", 5)
    # A child dies as it does without us, and the record of its parent has no end by it.
    write(TRAIN + KILLED.format(first="", forks=True, number=15, then=""))
    ran = gradclip_run("--overwrite", "script.py")
    assert (ran.returncode, ran.stdout) == (0, "-15\n")
    assert read_run(tmp_path / "run.jsonl").end is None
