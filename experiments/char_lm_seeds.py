"""Trains `examples/char_lm.py` on several seeds, without and with clipping.

    python experiments/char_lm_seeds.py

Each seed runs twice under `gradclip run`, each time in a process of its own: once recorded only,
once clipped too. The script is the same, unmodified, and so are its arguments. A run has diverged
if its loss became non-finite, if it spiked by over 1 nat (max over steps t > 20 of loss[t] -
min(loss[:t])), or if its validation loss ends above the text's unigram entropy, which is what the
counts of the characters alone give.

Figures go to `experiments/results/char_lm_seeds.json` as each run ends. A run that is in there is
not run again, unless with --fresh or after a change of the script or of a version.
"""

import hashlib
import itertools
import json
import math
import platform
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

import gradclip
from gradclip.show.summary import summarise

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "examples/char_lm.py"
RESULTS = ROOT / "experiments/results/char_lm_seeds.json"
UNCLIPPED = "none"
SPIKE = 1.0
"""A run counts as diverged if its loss rises this many nats over its best."""

Figures = dict[str, Any]
console = Console(highlight=False)


def unigram_entropy() -> float:
    """Return the entropy of the script's text from its character counts, in nats per character."""
    ids, vocabulary = runpy.run_path(str(ROOT / SCRIPT))["load_corpus"]()
    share = np.bincount(ids.numpy(), minlength=vocabulary) / len(ids)
    return float(-(share * np.log(share)).sum())


def command(seed: int, steps: int, clip: str | None) -> list[str]:
    """Return the arguments of `python`, for the repository's root."""
    name = UNCLIPPED if clip is None else re.sub(r"[^\w.]+", "-", clip)
    record = f"runs/char_lm_seeds/{name}-seed{seed}-steps{steps}.jsonl"
    flags = [] if clip is None else ["--clip", clip]
    options = ["--seed", str(seed), "--steps", str(steps)]
    return ["-m", "gradclip", "run", *flags, "--record", record, SCRIPT, *options]


def run(arguments: list[str], entropy: float) -> Figures:
    """Run the script and return its figures, from its output and its record."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    found = re.search(r"^validation loss: (\S+) nats/char\s*\Z", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        told = f"{done.stdout}{done.stderr}".rstrip()
        raise SystemExit(f"python {' '.join(arguments)}: code {done.returncode}\n{told}")

    record = gradclip.read_run(ROOT / arguments[arguments.index("--record") + 1])
    loss, norm = record.column("loss"), record.column("norm")
    summary = summarise(record)
    validation, spike = float(found[1]), summary.worst_spike
    if spike is None:
        raise SystemExit(f"{record.path}: {len(loss)} losses are too few to look for a spike in")
    finite = norm[np.isfinite(norm)]
    return {
        "validation_loss": validation,
        "worst_spike": spike,
        "worst_spike_step": summary.worst_spike_step,
        "nonfinite_losses": int((~np.isfinite(loss)).sum()),
        "nonfinite_gradients": summary.nonfinite,
        "diverged": not (np.isfinite(loss).all() and spike <= SPIKE and validation <= entropy),
        "steps": summary.steps,
        "clipped": summary.clipped,
        "skipped": summary.skipped,
        "norm_median": float(np.median(finite)) if len(finite) else math.nan,
        "norm_p90": float(np.percentile(finite, 90)) if len(finite) else math.nan,
        "norm_max": float(norm.max()) if len(norm) else math.nan,  # inf and NaN included
        "seconds": round(seconds, 1),
    }


def load(setting: Figures, fresh: bool) -> Figures:
    """Return the results so far of this setting, if there are any."""
    if RESULTS.exists() and not fresh:
        results = json.loads(RESULTS.read_text("utf-8"))
        if results["setting"] == setting:
            return results
        console.print("The script or a version has changed since the last results: starting anew.")
    return {"setting": setting, "runs": {}}


def save(results: Figures) -> None:
    """Write the results; a number that JSON does not have is the string "inf" or "nan"."""
    runs = {
        name: {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in figures.items()
        }
        for name, figures in results["runs"].items()
    }
    text = json.dumps({**results, "runs": runs}, indent=2, allow_nan=False)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(text + "\n", "utf-8")
    partial.replace(RESULTS)


def table(rows: list[tuple[int, str, Figures]], entropy: float) -> Table:
    """Return the runs as a table, one in each row; a diverged run is red."""
    title = f"{SCRIPT}: losses in nats/char; the text's unigram entropy is {entropy:.2f}"
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    shown.add_column("seed")
    shown.add_column("clip", no_wrap=True)
    for heading in ("val loss", "spike", "inf/nan", "norm p50", "p90", "max"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for seed, arm, figures in rows:
        shown.add_row(
            str(seed),
            arm,
            f"{float(figures['validation_loss']):.3f}",
            f"{float(figures['worst_spike']):.2f}",
            str(figures["nonfinite_losses"]),
            *(f"{float(figures[f'norm_{key}']):.3g}" for key in ("median", "p90", "max")),
            style="red" if figures["diverged"] else "",
            end_section=arm != UNCLIPPED,
        )
    arms = dict.fromkeys(arm for _, arm, _ in rows)
    counts = {
        arm: [figures["diverged"] for _, other, figures in rows if other == arm] for arm in arms
    }
    shown.caption = "; ".join(
        f"{arm}: {sum(count)} of {len(count)} diverged" for arm, count in counts.items()
    )
    return shown


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to this less 1.")] = 5,
    steps: Annotated[int, typer.Option(min=30, help="Training steps of each run.")] = 400,
    clip: Annotated[str, typer.Option(help="The policy of the clipped runs.")] = "norm:0.25",
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all again.")] = False,
) -> None:
    """Train the example on several seeds, without and with clipping, and compare."""
    entropy = unigram_entropy()
    setting = {
        "script_sha256": hashlib.sha256((ROOT / SCRIPT).read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradclip": gradclip.__version__,
        "unigram_entropy": entropy,
    }
    results = load(setting, fresh)
    rows = []
    for seed, policy in itertools.product(range(seeds), (None, clip)):
        arguments = command(seed, steps, policy)
        name = shlex.join(["python", *arguments])
        if name not in results["runs"]:
            with console.status(name):
                results["runs"][name] = run(arguments, entropy)
            save(results)
        rows.append((seed, policy or UNCLIPPED, results["runs"][name]))
    console.print(table(rows, entropy))
    console.print(f"All figures, and the commands: {RESULTS.relative_to(ROOT)}", markup=False)


if __name__ == "__main__":
    typer.run(main)
