"""Find clipping of gradients that are still multiplied by a loss scale."""

from __future__ import annotations

import math

import numpy as np

from ..record.rows import Floats
from ..record.trace import Trace
from .finding import Finding
from .piles import find_pile, power_of_two_between, script_limit
from .window import median

__all__ = ["find_clip_before_unscale", "jumps"]

SCALED = 1000.0
"""The smallest ratio of the median norm to the limit; torch's loss scale begins at 65,536."""

STEADY = 2.0
"""The largest median deviation of log2(norm) from its median; a run that explodes exceeds it."""

SIDE = 10
"""The number of norms on each side of a jump."""

EXACT = 0.25
"""The largest distance of log2 of a jump from a whole number; batches differ, so it is not zero."""

MIN_POWER, MAX_POWER = 8, 30
"""The powers of two that a loss scale takes; smaller powers would match by chance."""


def find_clip_before_unscale(trace: Trace) -> list[Finding]:
    """Return a finding if a power of two seems to multiply the norms or to divide the limit."""
    return _measured_scaled(trace) or _cut_while_scaled(trace)


def _measured_scaled(trace: Trace) -> list[Finding]:
    """Return a finding if the norms include the scale: they are thousands of times the limit."""
    norm, limit = trace.column("norm"), trace.column("limit")
    kept = norm[np.isfinite(norm) & (norm > 0)]
    if len(kept) < 2 * SIDE:
        return []
    level, bound = median(kept), median(limit)
    spread = float(np.median(np.abs(np.log2(kept) - math.log2(level))))
    found = jumps(trace.steps, norm)
    clips = bound > 0 and level >= SCALED * bound
    if spread > STEADY or not (clips or (found and level >= SCALED)):
        return []
    first = int(trace.steps[np.isfinite(norm)][0])
    jumped = ""
    if found:
        step, power = found[0]
        jumped = f", and they jump by 2^{power} at step {step:,}, as a loss scale does"
    over = f"{level / bound:.3g} times the limit" if clips else f"{level:.3g}"
    return [
        Finding(
            "clip-before-unscale",
            "warning",
            first,
            f"The gradients seem to be clipped before they are unscaled: their norms are steadily "
            f"{over}{jumped}.",
            "Call scaler.unscale_(optimizer) before clipping; `attach` does so by itself.",
            {
                "median_norm": level,
                "limit": bound if clips else None,
                "jumps": [[step, power] for step, power in found[:20]],
                "spread_log2": spread,
            },
            trace.optimizer,
        )
    ]


def _cut_while_scaled(trace: Trace) -> list[Finding]:
    """Return a finding if the script clips before it unscales: many norms equal limit / 2ᵏ."""
    pile, limit = find_pile(trace), script_limit(trace)
    if pile is None or limit is None:
        return []
    power = power_of_two_between(limit, pile.value, tolerance=1e-4)
    if power is None or not MIN_POWER <= power <= MAX_POWER:
        return []
    return [
        Finding(
            "clip-before-unscale",
            "error",
            pile.first,
            f"The script clips to {limit:g} before it unscales: {pile.share:.0%} of the norms are "
            f"exactly {limit:g}/2^{power} = {pile.value:.3g}, so hardly any gradient is left.",
            "Call scaler.unscale_(optimizer) before clipping, or let `attach` do both.",
            {"limit": limit, "value": pile.value, "power": power, "share": pile.share},
            trace.optimizer,
        )
    ]


def jumps(steps: Floats, norm: Floats) -> list[tuple[int, int]]:
    """Return (step, k) for each step at which the level of the norms jumps by 2ᵏ, k ≠ 0.

    The norms on both sides must be steady to within half an octave: a slope is not a jump.

    Args:
        steps: the steps, shape (n,); not mutated.
        norm: the norms at these steps, shape (n,); not mutated.
    """
    finite = np.isfinite(norm) & (norm > 0)
    logs, at = np.log2(norm[finite]), steps[finite]
    found: list[tuple[int, int]] = []
    for row in np.flatnonzero(np.abs(np.diff(logs)) >= 1 - 2 * EXACT) + 1:
        before, after = logs[max(row - SIDE, 0) : row], logs[row : row + SIDE]
        if min(len(before), len(after)) < SIDE:
            continue
        change = float(np.median(after) - np.median(before))
        steady = max(float(np.median(np.abs(side - np.median(side)))) for side in (before, after))
        power = round(change)
        if power and steady <= EXACT and abs(change - power) <= EXACT:
            found.append((int(at[row]), power))
    return found
