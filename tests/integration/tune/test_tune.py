"""`gradclip tune` on real scripts, each run a process; and how the learning rate is multiplied."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from gradclip import read_run
from gradclip.cli import app, progress
from gradclip.tune.trial import Scale

SETTINGS = {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}

TRAIN = """
    import os, sys, time, torch
    open("started", "a").write("x")
    torch.manual_seed(0)
    lr = float(sys.argv[sys.argv.index("--lr") + 1]) if "--lr" in sys.argv else 0.05
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(1000):
        try:
            x = torch.randn(256, 4)
            loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean() + 1
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        except Exception:
            print("caught")
    print("never printed in so few steps")
"""
FAST = ["--steps", "30", "--rungs", "1", "--lr-factors", "1", "--out", "out"]
TWICE = [*FAST, "--lr-factors", "1,2"]  # The later one counts.


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write the script."""

    def put(text: str) -> Path:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return path

    return put


def quiet(stderr: str) -> str:
    """Return what was said beside the progress, which has a line every few seconds."""
    return "".join(line for line in stderr.splitlines(True) if not line.startswith("tune: "))


def tune(cwd: Path, *args: object) -> Result:
    """Run the command in this process; each trial is a process all the same."""
    with contextlib.chdir(cwd):
        ran = CliRunner().invoke(app, ["tune", *map(str, args)], env=SETTINGS)
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return ran


def test_a_tuning_from_the_first_run_to_the_line_to_paste(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    write(TRAIN)
    args = [*TWICE, "--thresholds", "0.5", "--policy", "zclip", "--jobs", 2, "--json", "train.py"]
    ran = tune(tmp_path, *args, "--lr", "0.05")
    assert ran.exit_code == 0, ran.stderr
    assert quiet(ran.stderr) == ""
    told = json.loads(ran.stdout)
    assert ran.stdout.count("\n") == 1
    assert [row["policy"] for row in told["policies"]] == ["none", "norm:0.5", "zclip"]
    assert told["command"].endswith("train.py --lr 0.05")
    # Every number is that of a record.
    records = {
        (trial["policy"], trial["factor"]): read_run(path)
        for trial in told["trials"]
        for path in (tmp_path / "out/trials").glob("*.jsonl")
        if path.name.startswith(f"{trial['policy'].replace(':', '-')}_lr{trial['factor']:g}_")
    }
    assert len(records) == len(told["trials"]) == 6
    for trial in told["trials"]:
        run = records[trial["policy"], trial["factor"]]
        assert run.steps.tolist() == list(range(1, 31))
        assert run.end is not None
        assert run.end.status == "ok"
        # LambdaLR computes from its own base: the factor is there all the same, at every step.
        expected = [0.05 * trial["factor"] / step for step in range(1, 31)]
        assert run.column("lr") == pytest.approx(expected)
        assert run.column("loss")[0] == records["none", 1.0].column("loss")[0]
        assert run.header.policy == (None if trial["policy"] == "none" else trial["policy"])
    best = min(told["trials"], key=lambda trial: trial["outcome"]["loss"])
    chosen = next(
        trial
        for trial in told["trials"]
        if (trial["policy"], trial["factor"]) == (told["recommended"], told["lr_factor"])
    )
    assert chosen["outcome"]["loss"] <= best["outcome"]["loss"] * 1.01
    logs = [log.read_text() for log in (tmp_path / "out/trials").glob("*.log")]
    assert logs == [""] * 6  # No script caught the stop, or went on to its end.
    again = tune(tmp_path, *args, "--lr", "0.05")
    assert json.loads(again.stdout) == told
    assert (tmp_path / "started").read_text() == "x" * 6


@pytest.mark.slow
def test_thresholds_come_from_the_unclipped_run_and_the_table_shows_them(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    write(TRAIN)
    ran = tune(tmp_path, *FAST, "train.py")
    assert ran.exit_code == 0, ran.stderr
    assert "no clipping" in ran.stdout
    assert ran.stdout.count("\n  norm:") >= 3
    assert "highest stable" in ran.stdout
    assert "×1 (0.05)" in ran.stdout
    assert re.search(r"\n  (python|gradclip run --clip norm:\S+) train\.py\n\Z", ran.stdout)


@pytest.mark.slow
def test_the_flag_of_the_script_is_multiplied_instead(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    write(TRAIN)
    args = [*TWICE[:-1], "2", "--thresholds", "1", "--lr-flag", "--lr", "--json"]
    ran = tune(tmp_path, *args, "train.py", "--lr", "0.1")
    assert ran.exit_code == 0, ran.stderr
    (path,) = (tmp_path / "out/trials").glob("none_lr2_*.jsonl")
    run = read_run(path)
    assert run.column("lr")[0] == pytest.approx(0.2)
    assert run.header.command[-2:] == ("--lr", "0.2")
    refused = tune(tmp_path, *args, "train.py")
    assert refused.exit_code == 2
    assert "--lr-flag --lr is not usable" in refused.stderr


def test_a_killed_tuning_goes_on_where_it_was(write: Callable[[str], Path], tmp_path: Path) -> None:
    write(TRAIN.replace("optimizer.step()", "optimizer.step(); time.sleep(0.03)"))
    args = [*TWICE, "--thresholds", "1", "--json", "train.py"]
    command = [sys.executable, "-m", "gradclip", "tune", *args]
    state = tmp_path / "out" / "tune.json"
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | SETTINGS, stdout=subprocess.DEVNULL
    ) as one:
        try:
            until(lambda: state.exists() and len(json.loads(state.read_text())["trials"]) == 2)
            until(lambda: (tmp_path / "started").read_text() == "xxx")
        finally:
            one.kill()
    assert one.returncode == -signal.SIGKILL
    ran = tune(tmp_path, *args)
    assert ran.exit_code == 0, ran.stderr
    # Two were done, the third was cut off and is done again, the fourth is new.
    assert (tmp_path / "started").read_text() == "x" * 5
    assert len(json.loads(ran.stdout)["trials"]) == 4
    assert not list((tmp_path / "out").rglob("*.partial*"))


def until(true: Callable[[], bool]) -> None:
    """Wait for something, minutes at most: the machine may be busy."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come true")


def test_an_interrupt_ends_the_runs_and_says_how_to_go_on(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    write(TRAIN.replace("optimizer.step()", "optimizer.step(); time.sleep(1)"))
    command = [sys.executable, "-m", "gradclip", "tune", *FAST, "train.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | SETTINGS, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            until(lambda: (tmp_path / "started").exists())
            one.send_signal(signal.SIGINT)
            _, err = one.communicate(timeout=120)
        finally:
            one.kill()
    assert one.returncode == 130
    assert quiet(err) == "gradclip: stopped; the same command continues from out\n"


def test_a_budget_shortens_the_runs_and_a_pipe_sees_the_progress(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(TRAIN)
    monkeypatch.setattr(progress, "EVERY", 0.2)
    args = ["--budget", "200steps", "--policy", "norm:1", "--out", "out", "--json", "train.py"]
    ran = tune(tmp_path, *args)
    assert ran.exit_code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert sum(trial["steps"] for trial in told["trials"]) <= 200
    assert told["left_out"].startswith("For the budget the longest runs have ")
    lines = [line for line in ran.stderr.splitlines() if line.startswith("tune: ")]
    assert len(lines) >= 2, ran.stderr
    assert re.fullmatch(
        r"tune: \d+ runs? done, \d+ of \d+ steps, .*; now .*, learning rate ×.*, \d+ steps",
        lines[-1],
    )
    again = tune(tmp_path, *args)
    assert json.loads(again.stdout) == told  # The same plan, from the state alone.


# ---- Scripts that cannot be tuned

FAULTS = {
    "no step": ("print('trains nothing')", 3, "no step of any torch optimizer was seen"),
    "fails at once": ("import no_such_module", 1, "No module named 'no_such_module' (exit code 1)"),
    "fails later": (
        TRAIN.replace("schedule.step()", "step < 5 or sys.exit('out of data')"),
        1,
        "the script fails by itself: out of data (exit code 1)",
    ),
    "no loss": (
        TRAIN.replace("loss.backward()", "[p.grad is None and setattr(p, 'grad', p * 0) "
                      "for p in model.parameters()]").replace("zero_grad()", "zero_grad"),
        3,
        "no loss was seen",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_script_that_cannot_be_tuned(
    fault: str, write: Callable[[str], Path], tmp_path: Path
) -> None:
    text, code, said = FAULTS[fault]
    write(text)
    ran = tune(tmp_path, *FAST, "train.py")
    assert (ran.exit_code, ran.stdout) == (code, "")
    err = quiet(ran.stderr)
    assert said in err
    assert err.startswith("gradclip: ")
    assert err.count("\n") == 1


def test_a_script_that_catches_every_stop_is_stopped(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    write(TRAIN.replace("except Exception", "except BaseException"))
    ran = tune(tmp_path, *FAST, "--thresholds", "1", "--json", "train.py")
    assert ran.exit_code == 0, ran.stderr
    logs = [log.read_text() for log in (tmp_path / "out/trials").glob("*.log")]
    assert set(logs) == {"caught\n" * 3}
    assert {t["outcome"]["status"] for t in json.loads(ran.stdout)["trials"]} == {"stable"}


# ---- The learning rate, with every scheduler

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: None,
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "Cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6, eta_min=0.01),
    "OneCycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=10),
    "Cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.4, step_size_up=2),
    "Sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
        ],
        [3],
    ),
}


def rates(schedule: Callable[[Any], Any], factor: float | None, lr: Any) -> tuple[Any, Any]:
    """Return the rates that eight steps used, and those that the script saw after each."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weight]}], lr=lr, momentum=0.5)
    scheduler = schedule(optimizer)
    used: list[float] = []
    seen: list[float] = []
    handles = []
    scale = None if factor is None else Scale(factor)
    if scale is not None:
        handles.append(optimizer.register_step_pre_hook(scale.before))
    handles.append(
        optimizer.register_step_pre_hook(lambda o, *_: used.append(float(o.param_groups[0]["lr"])))
    )
    if scale is not None:
        optimizer.register_step_post_hook(scale.after)
    for _ in range(8):
        weight.grad = torch.ones(1)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        seen.append(float(optimizer.param_groups[0]["lr"]))
    return used, seen


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_a_schedule_is_multiplied_as_a_whole_and_sees_nothing(name: str, tensor: bool) -> None:
    def lr() -> Any:
        return torch.tensor(0.2, dtype=torch.float64) if tensor else 0.2

    plain, seen_plain = rates(SCHEDULERS[name], None, lr())
    used, seen = rates(SCHEDULERS[name], 3.0, lr())
    assert used == pytest.approx([3 * rate for rate in plain])
    assert seen == seen_plain


def test_a_step_within_a_step_is_multiplied_once() -> None:
    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            used.append(self.param_groups[0]["lr"])

    used: list[float] = []
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scale = Outer([weight], lr=0.1), Scale(2.0)
    optimizer.register_step_pre_hook(scale.before)
    optimizer.register_step_post_hook(scale.after)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert used == [0.2]
    assert weight.item() == pytest.approx(0.8)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_rate_that_the_step_itself_sets_is_kept() -> None:
    class Halving(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            self.param_groups[0]["lr"] /= 2

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scale = Halving([weight], lr=0.1), Scale(2.0)
    optimizer.register_step_pre_hook(scale.before)
    optimizer.register_step_post_hook(scale.after)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
