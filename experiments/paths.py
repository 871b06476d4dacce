"""Follows the advisor's own advice from four starts, until it comes to rest.

    python -m experiments.paths               # what is missing; --markdown prints the tables
    python -m experiments.paths --only exploding_rnn

Each path starts with no clipping or with a limit of 0.01, 1 or 100. After each run the advisor is
asked with all records of the path, and the recommended policy is run next, until the advice keeps
what was run or names an earlier policy as the result. The loss at rest is compared with the best of
nine fixed limits and no clipping, of the same seed. The tasks are those of `experiments.studies`,
whose sweeps are stored; the scripts run as `gradclip run --clip POLICY --record FILE SCRIPT`.

Figures go to `experiments/results/paths.json`; what is in there is not run again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from gradclip import read_run
from gradclip.diagnosis.stability import final_loss
from gradclip.record import Run, traces_of

from .advised import follow
from .outcome import loss_of, markdown, mean
from .setting import Setting
from .store import RESULTS, Store
from .studies.auto import CASES, FIXED
from .train import train

__all__ = ["FILE", "SCRIPTS", "TASKS", "paths_part"]

ROOT = Path(__file__).resolve().parents[1]
FILE = RESULTS / "paths.json"

STARTS = ("none", "norm:0.01", "norm:1", "norm:100")
ASKINGS = 4
"""A path is to be at rest within so many askings."""

CLOSE = 0.02
"""A loss counts as the best up to this share of the loss without skill over the sweep's best."""

TASKS = {
    **dict.fromkeys(tuple(CASES)[::2], 0),
    **dict.fromkeys(tuple(CASES)[1::2], 1),
}
"""The seed of each task. The rules were made with every second task of the study `auto`, seed 0,
and tested with the others, seed 1."""

SEEN = 0


@dataclass(frozen=True)
class Script:
    """A script that `gradclip run` runs.

    Attributes:
        path: under the root of the repository.
        args: its arguments.
        trivial: the loss without skill.
        needs: the packages that it imports.
        seen: whether the rules were made with it.
    """

    path: str
    args: tuple[str, ...]
    trivial: float
    needs: tuple[str, ...] = ("torch",)
    seen: bool = False


SCRIPTS = {
    "char_lm.py, SGD": Script(
        "examples/char_lm.py", ("--steps", "200", "--hidden", "64"), math.log(87), seen=True
    ),
    "exploding_rnn.py": Script("experiments/scripts/exploding_rnn.py", (), 0.5, seen=True),
    "digits_mlp.py": Script(
        "experiments/scripts/digits_mlp.py", (), math.log(10), ("torch", "sklearn"), seen=True
    ),
    "trainer.py": Script(
        "experiments/scripts/trainer.py", (), math.log(4), ("transformers", "accelerate")
    ),
    "lightning_fit.py": Script(
        "experiments/scripts/lightning_fit.py", (), math.log(10), ("lightning", "sklearn")
    ),
}


# ---- The trainings


class _Known:
    """Trains with each policy once, and keeps the records in a folder."""

    def __init__(self, folder: Path, work: Callable[[str, Path], float | None]) -> None:
        self._folder = folder
        self._work = work
        self._done: dict[str, tuple[float, Run]] = {}

    def __call__(self, policy: str) -> tuple[float, Run]:
        if policy not in self._done:
            file = self._folder / f"{policy.replace(':', '')}.jsonl"
            loss = self._work(policy, file)
            run = read_run(file)
            self._done[policy] = (_recorded(run) if loss is None else loss, run)
        return self._done[policy]


def _of_task(setting: Setting) -> Callable[[str, Path], float]:
    def work(policy: str, file: Path) -> float:
        return loss_of(train(setting.with_(policy=policy), file))

    return work


def _of_script(script: Script) -> Callable[[str, Path], None]:
    def work(policy: str, file: Path) -> None:
        command = [sys.executable, "-m", "gradclip", "run", "--clip", policy, "--record", str(file)]
        command += ["--nonfinite", "propagate", script.path, *script.args]
        subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)

    return work


def _recorded(run: Run) -> float:
    """Return the final loss of a record: the only one that a script shows."""
    trace = max(traces_of([run]), key=lambda trace: len(trace.steps))
    return final_loss(trace.column("loss")[trace.seen("loss")])


def _task(name: str, seed: int, store: Store) -> dict[str, Any]:
    setting = CASES[name].setting.with_(seed=seed)
    swept = [store.get(setting.with_(policy=policy)) for policy in FIXED]
    figures = [run for run in swept if run is not None]
    assert len(figures) == len(FIXED), f"the sweep of {name} is missing: python -m experiments auto"
    trivial = figures[0]["trivial"]
    return _paths(_of_task(setting), min(map(loss_of, figures)), trivial, seed == SEEN)


def _script(script: Script) -> dict[str, Any]:
    work = _of_script(script)
    with tempfile.TemporaryDirectory() as folder:
        known = _Known(Path(folder), work)
        best = min(min(known(policy)[0] for policy in FIXED), script.trivial)
        return _paths(work, best, script.trivial, script.seen, known)


def _paths(
    work: Callable[[str, Path], float | None],
    best: float,
    trivial: float,
    seen: bool,
    known: Callable[[str], tuple[float, Run]] | None = None,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        perform = known or _Known(Path(folder), work)
        found = {start: follow(start, lambda policy: perform(policy)[1]) for start in STARTS}
        losses = {policy: perform(policy)[0] for path in found.values() for policy in path.policies}
    return {
        "best": best,
        "trivial": trivial,
        "seen": seen,
        "paths": {
            start: {**vars(path), "losses": [min(losses[p], trivial) for p in path.policies]}
            for start, path in found.items()
        },
    }


# ---- What is made of them


class _Row:
    """One path, with its regret: the loss at rest over the best, in losses without skill."""

    def __init__(self, name: str, start: str, case: dict[str, Any]) -> None:
        path = case["paths"][start]
        self.name, self.start, self.seen = name, start, case["seen"]
        self.path: dict[str, Any] = path
        at_rest = path["kept"] is not None and path["askings"] <= ASKINGS
        kept = path["policies"].index(path["kept"]) if path["kept"] is not None else -1
        self.at_rest = at_rest
        scale = case["trivial"]
        self.regret = (path["losses"][kept] - case["best"]) / scale
        self.first = (path["losses"][0] - case["best"]) / scale
        self.worse = path["losses"][kept] > path["losses"][0] + CLOSE * scale


def _rows(results: dict[str, Any]) -> list[_Row]:
    return [_Row(name, start, case) for name, case in results.items() for start in case["paths"]]


def paths_part() -> str:
    """Return the tables of the paths, as Markdown."""
    results = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    rows = _rows(results)
    if not rows:
        return "Not run yet."
    head = ["paths", "at rest within four askings", "within 2 %", "worse than the start",
            "mean regret", "worst regret", "mean regret of the start"]  # fmt: skip
    groups = {
        "tasks, seen": [r for r in rows if r.seen and "seed" in r.name],
        "tasks, held out": [r for r in rows if not r.seen and "seed" in r.name],
        "scripts": [r for r in rows if "seed" not in r.name],
        **{f"from `{start}`": [r for r in rows if r.start == start] for start in STARTS},
        "all": rows,
    }
    table = [[name, *_summary(group)] for name, group in groups.items() if group]
    worst = sorted(rows, key=lambda row: -row.regret)[:10]
    each = [
        [row.name, " → ".join(f"`{p}`" for p in row.path["policies"]), f"`{row.path['kept']}`",
         f"{row.regret:.1%}"]
        for row in worst
    ]  # fmt: skip
    return "\n\n".join(
        [markdown(head, table), _left(rows), "The ten worst paths:",
         markdown(["case", "path", "at rest", "regret"], each, numbers=False)]
    )  # fmt: skip


def _left(rows: Sequence[_Row]) -> str:
    """Return a sentence on the healthy runs that the advice left although they were the best."""
    auto = sum("auto" in row.path["left"] for row in rows)
    others = sum(any(policy != "auto" for policy in row.path["left"]) for row in rows)
    return (
        f"The advice left a healthy best run, for one more run, in {auto} paths under `auto` and "
        f"in {others} paths under another policy."
    )


def _summary(rows: Sequence[_Row]) -> list[str]:
    count = len(rows)
    rest, close = sum(row.at_rest for row in rows), sum(row.regret <= CLOSE for row in rows)
    worse = sum(row.worse for row in rows)
    return [
        f"{rest} of {count}",
        f"{close} of {count} ({close / count:.0%})",
        f"{worse} of {count}",
        f"{mean(row.regret for row in rows):.1%}",
        f"{max(row.regret for row in rows):.1%}",
        f"{mean(row.first for row in rows):.1%}",
    ]


def main(
    markdown: Annotated[bool, typer.Option(help="Print the tables; run nothing.")] = False,
    only: Annotated[str, typer.Option(help="Only the cases with this in their name.")] = "",
    fresh: Annotated[bool, typer.Option(help="Run again what is finished.")] = False,
) -> None:
    """Follow the paths that have not been followed yet."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if markdown:
        console.print(paths_part())
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = Store()
    results = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, seed in TASKS.items():
        work[f"{name}, seed {seed}"] = lambda n=name, s=seed: _task(n, s, store)
    for name, script in SCRIPTS.items():
        if all(find_spec(package) for package in script.needs):
            work[name] = lambda s=script: _script(s)
        else:
            console.print(f"{name} is left out: it needs {', '.join(script.needs)}")
    for name, job in work.items():
        if only in name and (fresh or name not in results):
            results[name] = job()
            text = json.dumps(dict(sorted(results.items())), indent=1)
            FILE.write_text(text + "\n", "utf-8")
            for row in _rows({name: results[name]}):
                console.print(f"{name}: {row.path['policies']} {row.path['kept']} {row.regret:.1%}")


if __name__ == "__main__":
    typer.run(main)
