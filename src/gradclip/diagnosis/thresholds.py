"""Find a threshold that never binds, always binds, or removes most of the gradient."""

from __future__ import annotations

import numpy as np

from ..errors import PolicyError
from ..method.describe import describe
from ..method.read import parse
from ..record.trace import Trace
from .finding import Finding
from .found import is_auto
from .piles import script_limit
from .ruin import divides
from .window import median

__all__ = ["changes_every_step", "find_thresholds"]

ENOUGH = 50
"""The smallest number of steps for a judgement of a threshold."""

ALWAYS = 0.95
"""The share of clipped steps from which clipping is normalisation; AutoClip's default clips 0.9."""

MOST = 0.9
"""The share of the norm that clipping removes at the median step, from which there is a finding."""


def find_thresholds(trace: Trace) -> list[Finding]:
    """Return the findings on the limit in force; that of `auto` has a note of its own."""
    norm, limit = trace.column("norm"), trace.column("limit")
    clipped = trace.marked("clipped")
    usable = np.isfinite(norm) & ~trace.marked("skipped")
    clips = trace.policy not in (None, "none") or script_limit(trace) is not None
    if usable.sum() < ENOUGH or not clips or is_auto(trace.policy):
        return []
    share = float(clipped[usable].mean())
    limits = limit[usable & np.isfinite(limit)]
    numbers = {
        "clip_rate": share,
        "limit": median(limits) if len(limits) else None,
        "median_norm": median(norm[usable]),
        "max_norm": float(norm[usable].max()),
    }
    found = []
    fixed = len(limits) > 0 and bool(np.ptp(limits) == 0)
    if fixed and not clipped.any():
        found.append(_never(trace, numbers))
    if share >= ALWAYS and not changes_every_step(trace.policy):
        step = int(trace.steps[clipped][0])
        found.append(_always(trace, step, numbers))
    removed = _removed(trace)[usable]
    typical = median(removed)
    if typical >= MOST and not changes_every_step(trace.policy):
        found.append(_most(trace, int(trace.steps[usable][removed >= MOST][0]), typical, removed))
    return found


def changes_every_step(policy: str | None) -> bool:
    """Return whether a policy changes every gradient on purpose, as normalisation does.

    Args:
        policy: the text form of the policy, or None for no policy.
    """
    try:
        response = describe(parse(policy or "none")).response
    except (PolicyError, TypeError, ValueError):  # A later version wrote the policy.
        return False
    return any(kind in response for kind in ("Normalise", "Smooth"))


def _removed(trace: Trace) -> np.ndarray:
    """Return the removed share of the norm, from the columns that the record has."""
    if trace.seen("removed").any():
        return trace.column("removed")
    norm, after = trace.column("norm"), trace.column("clipped_norm")
    with np.errstate(all="ignore"):
        return np.where(norm > 0, 1 - after / norm, np.nan)


def _never(trace: Trace, numbers: dict[str, object]) -> Finding:
    return Finding(
        "never-binds",
        "note",
        int(trace.steps[0]),
        f"The threshold never binds: the limit is {numbers['limit']:.3g} and the largest norm "
        f"was {numbers['max_norm']:.3g}.",
        "The threshold may stay as a safety net; for a threshold that acts, ask `gradclip advise`.",
        numbers,
        trace.optimizer,
    )


def _always(trace: Trace, step: int, numbers: dict[str, object]) -> Finding:
    is_divided = divides(trace)
    follows = (
        "so every step has the same weight in the averages of the optimizer, which divides by the "
        "gradient's size in any case."
        if is_divided
        else "so every step has the same norm and the learning rate alone sets the step's size."
    )
    return Finding(
        "always-binds",
        "note" if is_divided else "warning",
        step,
        f"The threshold always binds: {numbers['clip_rate']:.0%} of the steps are clipped, "
        f"{follows}",
        "Raise the threshold (`gradclip advise`). If every step should have the same norm, use "
        "the policy `normalise`.",
        numbers,
        trace.optimizer,
    )


def _most(trace: Trace, step: int, typical: float, removed: np.ndarray) -> Finding:
    return Finding(
        "removes-most",
        "warning",
        step,
        f"Clipping removes most of the gradient: {typical:.1%} of its norm at the median step.",
        "The threshold is far under the usual norm: raise the threshold, or check whether the "
        "gradient is still multiplied by a loss scale.",
        {"median_removed": typical, "share_of_steps": float((removed >= MOST).mean())},
        trace.optimizer,
    )
