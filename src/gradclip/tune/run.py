"""Run the trials of a tuning, each in its own process, and keep each outcome."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..advisor import advise
from ..errors import GradclipError, RecordError
from ..record import Run, read_run
from ..show.words import counted
from ..version import __version__
from .budget import MANY, Budget, Grid, Pace, fit, shorten
from .outcome import Outcome, judge
from .plan import UNCLIPPED, Trial, candidates, grid, lengths_for, sizes_for, survivors
from .result import Result, conclude
from .script import Script
from .state import State

__all__ = ["NOTHING_SEEN", "SCRIPT_FAILED", "Listener", "Setting", "TuneError", "tune"]

SCRIPT_FAILED = 1
POLICY_UNFIT = 2
NOTHING_SEEN = 3

RESERVE = 0.9
"""The share of the budget that is planned at first; the rest is for trials that take longer."""


class TuneError(GradclipError):
    """An error of a script that fails with every threshold and every learning rate.

    Attributes:
        code: the exit code of the command.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Setting:
    """The policies, learning rates and lengths to try.

    Attributes:
        steps: the steps of the longest runs, ≥ 1.
        rungs: the largest number of different lengths, ≥ 1.
        factors: the factors of the learning rate, each > 0.
        policies: the text forms of the policies; None takes thresholds from the run without
            clipping, and `auto`.
        budget: the most that all runs may take together; None for no limit.
    """

    steps: int = 300
    rungs: int = 3
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    policies: tuple[str, ...] | None = None
    budget: Budget | None = None


Listener = Callable[[Trial, Outcome | None, int], None]
"""A function that gets a trial, its outcome (None at its start) and the number of planned steps."""


def tune(
    script: Script,
    setting: Setting,
    out: Path,
    *,
    jobs: int = 1,
    fresh: bool = False,
    on_trial: Listener = lambda _trial, _outcome, _planned: None,
) -> Result:
    """Run a script many times for a few steps, and recommend a policy and a learning rate.

    The first run has no clipping and the full length; its norms give the thresholds to try. Then
    every policy runs with every factor for a few steps, the best third of them runs three times as
    long, and so on. Each run starts from the beginning, with the script's own seed. The file
    `out/tune.json` has the outcomes; a call with the same arguments does not repeat finished runs.
    With a budget the runs become shorter, and if need be fewer, until they fit.

    Args:
        script: the script to run.
        setting: the policies, rates and lengths to try.
        out: the folder for the state, and for the record and the output of each run.
        jobs: the number of runs at the same time, ≥ 1; the results do not depend on this number.
        fresh: whether to repeat finished runs.
        on_trial: the function to call at the start and at the end of each trial.

    Returns:
        The result with the recommendation.

    Raises:
        TuneError: the script itself fails, makes no optimizer step, or shows no loss.
        GradclipError: the state belongs to another tuning, or all runs diverged.
    """
    for factor in setting.factors:
        script.args_for(factor)
    state = State(out / "tune.json", _facts(script, setting), fresh=fresh)
    runner = _Runner(script, state, out, on_trial)
    first, seconds = _first(setting)
    base = Trial(UNCLIPPED, 1.0, first)
    runner.planned = first
    outcome = runner.run_trials([base], jobs=1, seconds=seconds)[base]
    run = read_run(runner.record(base))
    purse = None if setting.budget is None else _Purse(setting.budget, jobs, base, outcome, run)
    policies = candidates(advise(run)) if setting.policies is None else setting.policies
    steps = min(outcome.steps, first)
    by_itself = steps < first and (seconds is None or outcome.seconds < seconds)
    tried = Grid(tuple(policies), setting.factors, steps, steps if by_itself else setting.steps)
    if purse is not None:
        tried = fit(tried, setting.rungs, RESERVE * purse.left, purse.pace)
    used, lengths, left_out = _climb(runner, tried, setting.rungs, jobs, outcome, purse)
    named = ["-m", script.target] if script.module else [script.target]
    rung = grid(tried.policies, tried.factors, lengths[0])
    return replace(
        conclude(rung, used, lengths, [*named, *script.args]), left_out=left_out or tried.left_out
    )


def _first(setting: Setting) -> tuple[int, float | None]:
    """Return the steps of the first run, and the seconds after which that run ends."""
    if setting.budget is None:
        return setting.steps, None
    many = MANY if setting.policies is None else len(setting.policies)
    return setting.budget.first(setting.steps, setting.rungs, many * len(setting.factors))


def _climb(
    runner: _Runner, tried: Grid, rungs: int, jobs: int, first: Outcome, purse: _Purse | None
) -> tuple[dict[Trial, Outcome], tuple[int, ...], str]:
    """Run one rung after the other; return the outcomes, the lengths, and what was left out."""
    lengths = lengths_for(tried.steps, rungs)
    sizes = sizes_for(tried.count, len(lengths))
    runner.planned += sum(n * length for n, length in zip(sizes, lengths, strict=True))
    used: dict[Trial, Outcome] = {}
    left_out = ""
    rung = grid(tried.policies, tried.factors, lengths[0])
    for place in range(len(lengths)):
        if place:
            new = lengths
            if purse is not None:
                new = shorten(lengths, sizes, place, purse.left, purse.pace)
            if new != lengths:
                steps = counted(new[-1], "step")
                left_out = f"The budget allows for runs of {steps}, not {lengths[-1]:,}."
                lengths = new
            if place >= len(lengths):
                break
            rung = survivors(rung, lambda t: used[t].rank, sizes[place], lengths[place])
        unclipped = Trial(UNCLIPPED, 1.0, lengths[-1])
        if place == len(lengths) - 1 and first.steps != lengths[-1] and unclipped not in rung:
            rung = (*rung, unclipped)  # The first run is longer, and so is not comparable.
        done = runner.run_trials(rung, jobs)
        used.update((trial, done[trial]) for trial in rung)
        if purse is not None:
            purse.made.update(used)
    if first.steps == lengths[-1]:
        used.setdefault(Trial(UNCLIPPED, 1.0, lengths[-1]), first)
    return used, lengths, left_out


class _Purse:
    """What the finished trials have left of the budget, and the cost of one more.

    It counts the trials' own time, from the state, and only the trials so far: a tuning that
    continues makes the same plan again.

    Attributes:
        made: the trials so far.
    """

    def __init__(self, budget: Budget, jobs: int, base: Trial, outcome: Outcome, run: Run) -> None:
        self.made = {base: outcome}
        self._budget, self._jobs, self._first = budget, jobs, outcome
        self._step = float(run.column("time").max(initial=0.0)) / max(outcome.steps, 1)
        self._start = max(outcome.seconds - self._step * outcome.steps, 0.0)

    @property
    def left(self) -> float:
        """The rest of the budget: steps, or seconds of all processes together."""
        if self._budget.unit == "steps":
            return self._budget.amount - sum(trial.steps for trial in self.made)
        others = sum(outcome.seconds for outcome in self.made.values()) - self._first.seconds
        return (self._budget.amount - self._first.seconds) * self._jobs - others

    @property
    def pace(self) -> Pace:
        """The cost of a run; of seconds as the trials so far have shown it."""
        if self._budget.unit == "steps":
            return Pace()
        real = sum(outcome.seconds for outcome in self.made.values())
        guessed = sum(self._start + self._step * outcome.steps for outcome in self.made.values())
        ratio = real / guessed if guessed else 1.0
        return Pace(self._start * ratio, max(self._step * ratio, 1e-9))


def _facts(script: Script, setting: Setting) -> dict[str, object]:
    """Return every fact that the outcomes depend on, as JSON values."""
    source = None
    if not script.module and Path(script.target).is_file():
        source = hashlib.sha256(Path(script.target).read_bytes()).hexdigest()
    facts = {
        "script": asdict(script),
        "source_sha256": source,
        "tried": asdict(setting),
        "gradclip": __version__,
    }
    return json.loads(json.dumps(facts))


class _Runner:
    """Start trials, follow them to their end, and end the unfinished trials on a stop."""

    def __init__(self, script: Script, state: State, out: Path, on_trial: Listener) -> None:
        self.planned = 0
        self._script = script
        self._state = state
        self._out = out / "trials"
        self._on_trial = on_trial
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._out.mkdir(parents=True, exist_ok=True)
        self._clear()

    def record(self, trial: Trial) -> Path:
        """Return the path of a trial's record."""
        return self._out / f"{_name(trial)}.jsonl"

    def run_trials(
        self, trials: Iterable[Trial], jobs: int, seconds: float | None = None
    ) -> dict[Trial, Outcome]:
        """Run the unfinished trials, and return the outcomes of all trials."""
        known = self._state.outcomes
        todo = []
        for trial in trials:
            if trial in known and self.record(trial).exists():
                self._on_trial(trial, known[trial], self.planned)
            else:
                todo.append(trial)
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._one, trial, seconds) for trial in todo]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        self._clear()
        return known

    def _clear(self) -> None:
        """Remove what trials of a killed tuning left, a trial that began late included."""
        for left in self._out.glob("*.partial"):
            left.unlink()

    def _one(self, trial: Trial, seconds: float | None) -> None:
        self._on_trial(trial, None, self.planned)
        record, log = self.record(trial), self._out / f"{_name(trial)}.log"
        # The name has this process's id: a trial of a killed tuning may still write its own file.
        partial = record.with_suffix(f".{os.getpid()}.partial")
        args = self._script.args_for(trial.factor)
        job = {
            "record": str(partial),
            "policy": None if trial.policy == UNCLIPPED else trial.policy,
            "factor": 1.0 if self._script.lr_flag else trial.factor,
            "steps": trial.steps,
            "seconds": seconds,
            "target": self._script.target,
            "args": list(args),
            "module": self._script.module,
            "command": ["gradclip", "tune", self._script.target, *args],
        }
        command = [sys.executable, "-m", "gradclip.tune.trial", json.dumps(job)]
        begun = time.monotonic()
        with log.open("wb") as output:
            code = self._wait(command, output)
        taken = round(time.monotonic() - begun, 3)
        outcome = replace(self._outcome(trial, partial, log, code), seconds=taken)
        with self._lock:
            if self._stopped:
                return
            partial.replace(record)
            self._state.add(trial, outcome)
            self._on_trial(trial, outcome, self.planned)

    def _wait(self, command: Sequence[str], output: BinaryIO) -> int:
        with self._lock:
            if self._stopped:
                raise GradclipError("the tuning was stopped")
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def _outcome(self, trial: Trial, record: Path, log: Path, code: int) -> Outcome:
        run = _read(record)
        made = 0 if run is None else int(run.column("step").max(initial=0))
        failure = None
        if code != 0 and made < trial.steps:
            failure = _failure(log, code)
        if run is None or made == 0:
            if code == POLICY_UNFIT and failure and failure.startswith("gradclip: "):
                raise GradclipError(f"policy {trial.policy}: {failure.removeprefix('gradclip: ')}")
            if failure is not None:
                raise self._fault(failure, log)
            raise TuneError(
                "no step of any torch optimizer was seen, so there is nothing to tune. Does the "
                "script train in another process (mp.spawn), or with an optimizer that is not a "
                f"torch.optim.Optimizer? Its output is in {log}",
                NOTHING_SEEN,
            )
        if not run.seen("loss").any():
            raise TuneError(
                "no loss was seen: the script calls backward() on no single number, so the runs "
                "cannot be compared",
                NOTHING_SEEN,
            )
        outcome = judge(run, failure)
        well = trial.policy == UNCLIPPED and trial.factor == 1 and outcome.loss < float("inf")
        if failure is not None and well and judge(run).status != "diverged":
            raise self._fault(failure, log)
        return outcome

    def _fault(self, failure: str, log: Path) -> TuneError:
        return TuneError(f"the script fails by itself: {failure} (its output is in {log})",
                         SCRIPT_FAILED)  # fmt: skip


def _read(path: Path) -> Run | None:
    try:
        return read_run(path)
    except RecordError:  # The process was gone before it could write a header.
        return None


def _failure(log: Path, code: int) -> str:
    """Return the last line of the script's output, which in a traceback is the error."""
    lines = log.read_text("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{last[:300]} ({how})"


def _name(trial: Trial) -> str:
    """Return a readable name for the files of one trial."""
    policy = re.sub(r"[^\w.=-]+", "-", trial.policy)[:60]
    digest = hashlib.sha256(trial.key.encode()).hexdigest()[:6]
    return f"{policy}_lr{trial.factor:g}_{trial.steps}_{digest}"
