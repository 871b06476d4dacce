"""Compares clipping inside backward with exact global clipping.

    python experiments/in_backward.py

The model of `examples/char_lm.py`, SGD at its learning rate of 20, clipped to a norm of 0.25: once
when all gradients are there (exact), once in the steps of one optimizer for each parameter, called
inside backward, where only the last factor and the norm so far are known
(`gradclip.torch.attach_in_backward`), and once with no clipping. Paired: the same seeds, weights
and batches.

Figures go to `experiments/results/in_backward.json`; a seed that is in there is not run again.
"""

import json
import math
import platform
import runpy
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from gradclip.torch import InBackward, attach, attach_in_backward

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results/in_backward.json"
LIMIT, LR, STEPS, BATCH, SEQ = 0.25, 20.0, 400, 20, 35
WAYS = ("exact", "in backward", "none")
HEADINGS = (
    "seed",
    "exact: loss",
    "in backward",
    "not clipped",
    "steps to clip",
    "steps over the limit",
    "by at most, x",
)
console = Console(highlight=False)


def _prepare(way: str, model: torch.nn.Module) -> tuple[Any, Any]:
    """Return the function to call after backward, and the clipper."""
    policy = f"norm:{LIMIT}"
    if way != "in backward":
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        clipper = attach(optimizer, policy, model=model) if way == "exact" else None

        def step() -> None:
            optimizer.step()
            optimizer.zero_grad()

        return step, clipper

    optimizers: dict[Tensor, torch.optim.Optimizer] = {
        p: torch.optim.SGD([p], lr=LR) for p in model.parameters()
    }

    def inside(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(inside)
    return (lambda: None), attach_in_backward(optimizers.values(), policy, model=model)


def run(seed: int, way: str) -> dict[str, Any]:
    """Train once, and return the validation loss and the norms that were applied."""
    example = runpy.run_path(str(ROOT / "examples/char_lm.py"))
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    ids, vocabulary = example["load_corpus"]()
    split = len(ids) * 9 // 10
    model = example["CharLM"](vocabulary, 200, 2)
    finish, clipper = _prepare(way, model)
    over, worst, needed = 0, 0.0, 0
    for _ in range(STEPS):
        windows = example["sample_windows"](ids[:split], BATCH, SEQ)
        example["next_character_loss"](model, windows).backward()
        finish()
        if clipper is None:
            continue
        result = clipper.last
        used, raw = float(result.clipped_norm), float(result.total_norm)
        needed += raw > LIMIT
        over += used > LIMIT * (1 + 1e-6)
        worst = max(worst, used / LIMIT)
    return {
        "validation_loss": example["evaluate"](model, ids[split:], SEQ),
        "steps_over_the_limit": over / STEPS,
        "worst_norm_over_limit": worst,
        "steps_that_needed_clipping": needed / STEPS,
        "exact": isinstance(clipper, InBackward) and clipper.exact,
    }


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the table of the seeds that ran in all ways, and their mean."""
    seeds = sorted({int(key.split()[1].rstrip(",")) for key in found["runs"]})
    table, apart = [], []
    for seed in seeds:
        exact, inside, none = (found["runs"][f"seed {seed}, {way}"] for way in WAYS)
        apart.append(inside["validation_loss"] - exact["validation_loss"])
        table.append(
            [
                str(seed),
                *(f"{run['validation_loss']:.3f}" for run in (exact, inside, none)),
                f"{exact['steps_that_needed_clipping']:.0%}",
                f"{inside['steps_over_the_limit']:.0%}",
                f"{inside['worst_norm_over_limit']:.2f}",
            ]
        )
    mean = statistics.mean(apart)
    spread = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    table.append(["all", "", f"{mean:+.3f} ± {spread:.3f}", "", "", "", ""])
    return table


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Seeds 0 to this less 1.")] = 5,
    markdown: Annotated[bool, typer.Option(help="Print the stored results for the docs.")] = False,
) -> None:
    """Train the example in three ways on several seeds, and compare."""
    setting = {"python": platform.python_version(), "torch": torch.__version__, "steps": STEPS}
    found: dict[str, Any] = {"setting": setting, "runs": {}}
    if RESULTS.exists():
        stored = json.loads(RESULTS.read_text())
        found = stored if markdown or stored["setting"] == setting else found
    plan = [] if markdown else [(seed, way) for seed in range(seeds) for way in WAYS]
    for seed, way in track(plan, "training", console=console, disable=not console.is_terminal):
        key = f"seed {seed}, {way}"
        if key not in found["runs"]:
            found["runs"][key] = run(seed, way)
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    if markdown:
        lines = [list(HEADINGS), ["---"] * len(HEADINGS), *rows(found)]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    table = Table(*HEADINGS)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
