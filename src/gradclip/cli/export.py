"""`gradclip export`: write a figure for a paper."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..errors import GradclipWarning
from ..export import PANELS, write_figure
from .failure import exit_on_user_error
from .output import say, say_json

__all__ = ["export"]


def _panels(incomplete: str) -> list[str]:
    return [name for name in PANELS if name.startswith(incomplete)]


@exit_on_user_error
def export(
    runs: Annotated[list[Path], typer.Argument(help="Records that `gradclip run --record` wrote.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .svg, .pdf or .png file; an old file is replaced."),
    ] = Path("figure.svg"),
    panel: Annotated[
        list[str] | None,
        typer.Option(
            help="loss, norm, coef, rate, distribution or layers; repeat the option for more "
            "panels. Default: loss and norm.",
            autocompletion=_panels,
        ),
    ] = None,
    width: Annotated[float, typer.Option(help="Inches; one column of a paper is about 3.3.")] = 3.3,
    height: Annotated[
        float | None, typer.Option(help="Inches. Default: as the panels need.")
    ] = None,
    dpi: Annotated[int, typer.Option(help="Dots per inch of a PNG.")] = 300,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Write a figure of one or more runs for a paper.

    Lines differ by colour and dash. In the norm's panel a line of dots is the limit, a marker a
    clipped step, a cross a skipped one, and a diamond a gradient with inf or NaN; if not all of
    them are shown, the panel says how many. The runs are in the order in which they began.
    """
    panels = tuple(panel or ("loss", "norm"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", GradclipWarning)
        path = write_figure(list(runs), output, panels=panels, width=width, height=height, dpi=dpi)
    for one in warned:
        say(f"gradclip: warning: {one.message}", err=True)
    if json:
        row = {"figure": str(path), "runs": [str(run) for run in runs], "panels": panels}
        say_json(row)
    else:
        say(path)
