"""Show a run in a notebook: the verdict, the numbers, and small curves of the loss and the norm."""

from __future__ import annotations

import numpy as np

from ..diagnosis import diagnose, verdict
from ..record.run import Run
from ..record.trace import Trace, traces_of
from .card import card, code, fields, paragraph, sparkline
from .columns import wants_log
from .downsample import envelope
from .summary import summarise
from .words import counted, number

__all__ = ["run_card"]

MOST = 4
"""The largest number of optimizers on a card."""

_POINTS = 200


def run_card(run: Run) -> str:
    """Return the card of a run as HTML.

    Args:
        run: from `gradclip.read_run`, finished or not; not mutated.
    """
    found = diagnose(run)
    says = verdict(run, found)
    traces = traces_of([run])
    parts = [part for trace in traces[:MOST] for part in _parts(trace)]
    more = len(traces) - MOST
    if more > 0:
        parts.append(paragraph(f"and {counted(more, 'more optimizer')}"))
    return card(f"Run {run.path.name}", paragraph(says.sentence), *parts, code(says.command))


def _parts(trace: Trace) -> list[str]:
    """Return the numbers and the curves of one optimizer."""
    short = summarise(trace)
    pairs = [
        ("record", short.label),
        ("policy", f"`{short.policy}`" if short.policy else "recorded only"),
        ("steps", short.sentence),
        ("final loss", number(short.final_loss)),
        ("median norm", number(short.median_norm)),
        ("end", short.status),
    ]
    return [fields(pairs), *(_curve(trace, name, i) for i, name in enumerate(("loss", "norm")))]


def _curve(trace: Trace, name: str, index: int) -> str:
    column = trace.column(name)
    if not np.isfinite(column).any():
        return ""
    rows = envelope([column], _POINTS)
    return sparkline(
        column[rows].tolist(),
        trace.steps[rows].tolist(),
        label=name,
        log=wants_log([column]),
        trace=index,
    )
