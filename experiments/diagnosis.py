"""Counts what the diagnosis finds, misses and invents, on trainings with one planted fault each.

    python -m experiments.diagnosis               # all, some minutes; writes results/diagnosis.json
    python -m experiments.diagnosis --markdown    # the table of the docs, from that file

Each case is a real torch training of a second, recorded as `gradclip run` does it. A fault is
*found* if the diagnosis names its kind and, where the fault has one, its place or its cause: the
layer, the step, what came first. A *false alarm* is any error or warning on a healthy run, and on a
faulty one any that is neither the fault nor what may follow from it (listed with the case, as
`also`).

The rules were made and mended with the cases of `planted/faults.py` and `planted/healthy.py` and
the seeds of `SEEN`; the other cases and the other seeds were held out.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import gradclip
from gradclip import diagnose, read_run
from gradclip.record import RecordWriter, Run
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session

from .planted import faults, healthy, held_out_faults, held_out_healthy
from .planted.case import FAULTS, HEALTHY, STEPS, Case

__all__ = ["FAULTS", "HEALTHY", "HELD_OUT", "RESULTS", "SEEN", "markdown", "recorded", "tally"]

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
SEEN = (0, 1, 2)
HELD_OUT = (3, 4, 5, 6, 7)
CASES = (faults, healthy, held_out_faults, held_out_healthy)
"""The modules that enter the cases."""


def recorded(case: Case, seed: int, path: Path) -> Run:
    """Train, recorded as under `gradclip run`, and return the run."""
    torch.manual_seed(1000 + seed)
    writer = RecordWriter(
        path, if_exists="overwrite", policy=case.policy, command=[case.name, str(seed)]
    )
    policy = None if case.policy is None else gradclip.parse(case.policy)
    session = Session(policy, writer=writer, max_skips=STEPS)
    status = "ok"
    try:
        with watch(session):
            case.train()
    except (ArithmeticError, KeyboardInterrupt) as error:  # A fault of `planted`.
        status = f"error: {type(error).__name__}: {error}"
    finally:
        session.close(status)
    return read_run(path)


def tally(case: Case, run: Run) -> dict[str, Any]:
    """Return the tally of the diagnosis of a run."""
    findings = diagnose(run)
    about = [f for f in findings if f.kind == case.expected]
    allowed = {case.expected, *case.also}
    false = [f for f in findings if f.severity != "note" and f.kind not in allowed]
    return {
        "found": None if case.expected is None else any(map(case.place, about)),
        "kinds": sorted({f"{f.kind} ({f.severity})" for f in findings}),
        "sentence": next((f.sentence for f in about if case.place(f)), None),
        "false": [f"{f.kind} ({f.severity}), step {f.step}: {f.sentence}" for f in false],
    }


def run_cases(cases: dict[str, Case], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Train every case with every seed; return the tallies by name and seed."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases.values():
            rows = told[case.name] = {
                "expected": case.expected,
                "held_out": case.held_out,
                "seeds": {},
            }
            for seed in seeds:
                rows["seeds"][str(seed)] = tally(case, recorded(case, seed, Path(folder) / "r"))
    return told


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the docs."""
    held = {str(seed) for seed in results["setting"]["held_out"]}
    lines = ["| training | fault | found, seen | found, held out | false alarms |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    sums = {"found": [0, 0], "of": [0, 0], "false": 0, "false_held": 0, "runs": 0}
    for part in ("faults", "healthy"):
        for name, case in results[part].items():
            cells = []
            seeds = case["seeds"]
            unseen = set(seeds) if case["held_out"] else seeds.keys() & held
            for column, group in enumerate((seeds.keys() - unseen, unseen)):
                found = sum(bool(seeds[seed]["found"]) for seed in group)
                if case["expected"]:
                    sums["found"][column] += found
                    sums["of"][column] += len(group)
                cells.append(f"{found} of {len(group)}" if case["expected"] and group else "–")
            false = [seed for seed in seeds if seeds[seed]["false"]]
            sums["false"] += len(false)
            sums["false_held"] += len([seed for seed in false if seed in unseen])
            sums["runs"] += len(seeds)
            kind = f"`{case['expected']}`" if case["expected"] else "none"
            alarms = f"{len(false)} of {len(seeds)} runs"
            lines.append(f"| {name} | {kind} | {cells[0]} | {cells[1]} | {alarms} |")
    totals = [f"{a} of {b}" for a, b in zip(sums["found"], sums["of"], strict=True)]
    alarms = f"{sums['false']} of {sums['runs']} runs, {sums['false_held']} held out"
    lines.append(f"| **all** | | **{totals[0]}** | **{totals[1]}** | **{alarms}** |")
    return "\n".join(lines) + "\n"


def main(
    table: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the last run.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only cases with this in their name; no file.")] = "",
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds; no file.")] = None,
) -> None:
    """Train each case with each seed, diagnose it, and count."""
    if table:
        typer.echo(markdown(json.loads(RESULTS.read_text("utf-8"))), nl=False)
        return
    started = time.perf_counter()
    seeds = tuple(seed) if seed else (*SEEN, *HELD_OUT)
    results: dict[str, Any] = {
        "setting": {
            "seen": list(SEEN),
            "held_out": list(HELD_OUT),
            "steps": STEPS,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gradclip": gradclip.__version__,
        }
    }
    for name, cases in (("faults", FAULTS), ("healthy", HEALTHY)):
        kept = {key: case for key, case in cases.items() if only in key}
        results[name] = run_cases(kept, seeds)
        for case, told in results[name].items():
            for number, row in told["seeds"].items():
                if row["found"] is False or row["false"]:
                    typer.echo(f"{case}, seed {number}: {row['kinds']} {row['false']}", err=True)
    results["setting"]["seconds"] = round(time.perf_counter() - started)
    if not only and not seed:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    typer.echo(markdown(results), nl=False)


if __name__ == "__main__":
    typer.run(main)
