"""`gradclip demo`: run one script twice, and show the difference in a report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import GradclipError
from ..method.read import parse
from ..record import read_run
from ..report import write_report
from ..show.safe import printable
from ..show.summary import Summary, summarise
from ..show.words import number
from .complete import policies
from .failure import exit_on_user_error, require
from .output import say_json

__all__ = ["demo"]

CLIP = "norm:0.25"


@dataclass(frozen=True)
class _Arm:
    """One of the two runs after its end."""

    name: str
    validation: str
    summary: Summary

    def to_dict(self, record: Path) -> dict[str, object]:
        """Return the run as plain data."""
        return {
            "name": self.name,
            "record": str(record),
            "validation_loss": float(self.validation),
            **asdict(self.summary),
        }


@exit_on_user_error
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the records and the report.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 400,
    seed: Annotated[int, typer.Option(help="The seed of both runs.")] = 0,
    clip: Annotated[
        str, typer.Option(help="The policy of the second run.", autocompletion=policies)
    ] = CLIP,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Train a small language model without and with clipping, and compare the runs.

    The script does not import gradclip. It runs under `gradclip run`, first without and then with
    clipping, with the same seed and learning rate.
    """
    parse(clip)
    require("demo", "demo", "bokeh", "jinja2", "torch")  # Before the two trainings.
    script = _script()
    options = ["--seed", str(seed), "--steps", str(steps), "--log-every", str(max(1, steps // 40))]
    console = Console(highlight=False, stderr=json)
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[line]}"))
    records = {name: out / f"{name}.jsonl" for name in ("unclipped", "clipped")}
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bars = {name: progress.add_task(name, total=steps, line="") for name in records}
        arms = []
        for name, record in records.items():
            flags = ["--clip", clip] if name == "clipped" else []
            command = [*flags, "--record", str(record), "--overwrite", str(script), *options]
            validation = _train(command, progress, bars[name])
            arms.append(_Arm(name, validation, summarise(read_run(record))))
    page = write_report(list(records.values()), out / "report.html")
    if json:
        runs = [arm.to_dict(records[arm.name]) for arm in arms]
        say_json({"clip": clip, "report": str(page), "runs": runs})
        return
    console.print(_table(arms, clip))
    console.print(f"The picture: {printable(str(page))}", markup=False, soft_wrap=True)


def _train(arguments: list[str], progress: Progress, bar: TaskID) -> str:
    """Run the script, follow its output, and return the validation loss as the script writes it."""
    validation, last = "", deque[str](maxlen=20)
    with subprocess.Popen(
        [sys.executable, "-m", "gradclip", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if match := re.match(r"step\s+(\d+)\s+(.*)", line):
                progress.update(bar, completed=int(match[1]), line=match[2])
            elif match := re.match(r"validation loss: (\S+)", line):
                validation = match[1]
    if process.returncode != 0 or not validation:
        said = " | ".join(line.rstrip() for line in last)
        raise GradclipError(f"the script ended with code {process.returncode}: {said}")
    progress.update(bar, line=f"validation loss {validation}")
    return validation


def _table(arms: list[_Arm], clip: str) -> Table:
    table = Table(title=f"The same script and seed, without and with --clip {clip}")
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    rows = {
        "final validation loss, nats per character": [arm.validation for arm in arms],
        "worst loss spike, nats": [number(arm.summary.worst_spike) for arm in arms],
        "steps clipped": [f"{arm.summary.clipped} of {arm.summary.steps}" for arm in arms],
        "non-finite steps": [str(arm.summary.nonfinite) for arm in arms],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _script() -> Path:
    """Return the path of the example in an installed package or in a source tree."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "examples", package.parents[1] / "examples"]
    for place in places:
        if (place / "char_lm.py").is_file():
            return place / "char_lm.py"
    raise GradclipError(f"examples/char_lm.py is in none of {', '.join(map(str, places))}")
