"""Say where the limit that `auto` found is, and why it moved."""

from __future__ import annotations

import numpy as np

from ..record.trace import Trace
from .finding import Finding

__all__ = ["find_found_limit", "is_auto"]

FACTOR = 2.0
"""A limit has moved when it is this many times as large or as small as at the last move."""

SWING = 0.3
"""From this mean change of the norm's logarithm on, a limit over the usual one falls, too."""

RAMP = 360
"""Up to this step the limit is a growing share of its level."""


def is_auto(policy: str | None) -> bool:
    """Return whether a policy's text is that of `auto`, with any argument."""
    return policy is not None and policy.split(":")[0] == "auto"


def find_found_limit(trace: Trace) -> list[Finding]:
    """Return a note on the limit of the policy `auto`, with all moves by a factor of two."""
    limit, norm = trace.column("limit"), trace.column("norm")
    known = np.isfinite(limit) & np.isfinite(norm) & (norm > 0) & ~trace.marked("skipped")
    if not is_auto(trace.policy) or not known.any():
        return []
    steps, limit, norm = trace.steps[known], limit[known], norm[known]
    moves: list[dict[str, object]] = []
    last = 0
    for here in range(1, len(limit)):
        ratio = limit[here] / limit[last]
        if 1 / FACTOR < ratio < FACTOR:
            continue
        why = _why(bool(ratio > 1), int(steps[here]), norm[last:here], limit[last:here])
        moves.append({"step": int(steps[here]), "limit": float(limit[here]), "why": why})
        last = here
    shown = "".join(f"; {m['limit']:.3g} at step {m['step']}, since {m['why']}" for m in moves[-3:])
    return [
        Finding(
            "found-limit",
            "note",
            int(steps[-1]),
            f"`auto` has its limit at {limit[-1]:.3g}; it began at {limit[0]:.3g}{shown}.",
            f"Nothing is to be done; a fixed limit near the present one is `norm:{limit[-1]:.2g}`.",
            {"limit": float(limit[-1]), "first": float(limit[0]), "moves": moves},
            trace.optimizer,
        )
    ]


def _why(rose: bool, step: int, norm: np.ndarray, limit: np.ndarray) -> str:
    """Return the reason of a move: the rule of `auto`, on the norms since the last move."""
    over = f"{np.mean(norm > limit):.0%} of the norms were over it"
    if not rose:
        swings = len(norm) > 1 and np.mean(np.abs(np.diff(np.log(norm)))) > SWING
        return f"the norms fell to {np.median(norm):.3g}" + " or swing about it" * bool(swings)
    return f"it starts low and rises, and {over}" if step <= RAMP else over
