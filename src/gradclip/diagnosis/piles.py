"""Find norms that were clipped before gradclip measured them: many have the same value."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from ..record.trace import Trace
from .finding import Finding

__all__ = ["Pile", "find_double_clipping", "find_pile", "power_of_two_between", "script_limit"]

WIDTH = 1e-5
"""The relative width of a pile. torch's clipping gives the norm max·n/(n + 1e-6) up to the rounding
of float32; less than one in a thousand pairs of unclipped norms is so close."""

MIN_STEPS = 8
"""The smallest number of steps in a pile."""

SHARE = 0.05
"""The smallest share of the steps in a pile."""


class Pile(NamedTuple):
    """Norms that are equal up to `WIDTH`."""

    value: float
    """The median norm."""
    steps: int
    """The number of norms."""
    share: float
    """The share of all norms."""
    first: int
    """The first step with such a norm."""


def find_pile(trace: Trace) -> Pile | None:
    """Return the largest pile of equal norms before clipping, or None.

    The norms of a pile differ by at most `WIDTH`. Few norms may be larger, since a clipped norm
    does not exceed its limit. A run whose norms are all equal to the last bit has no pile,
    because its gradients never changed.
    """
    norm = trace.column("norm")
    order = np.argsort(norm, kind="stable")
    order = order[np.isfinite(norm[order]) & (norm[order] > 0)]
    values = norm[order]
    if len(values) < MIN_STEPS or values[-1] == values[0]:
        return None
    end = np.searchsorted(values, values * (1 + WIDTH), side="right")
    count = end - np.arange(len(values))
    start = int(count.argmax())
    steps, share = int(count[start]), float(count[start] / len(values))
    if steps < MIN_STEPS or share < SHARE or len(values) - end[start] > steps:
        return None
    rows = order[start : end[start]]
    return Pile(float(np.median(values[start : end[start]])), steps, share,
                int(trace.steps[rows.min()]))  # fmt: skip


def script_limit(trace: Trace) -> float | None:
    """Return the limit of the script's own clipping that `gradclip run` noted, or None."""
    for event in trace.run.events:
        if event.name == "script-clips" and (noted := re.search(r"\(…, (\S+)\)", event.text)):
            try:
                return float(noted[1])
            except ValueError:
                return None
    return None


def find_double_clipping(trace: Trace) -> list[Finding]:
    """Return a finding if the gradient was clipped twice, or before gradclip measured it.

    A record shows this in two ways: `gradclip run` notes the script's own calls, and many norms
    before clipping have the same value. Clipping of each layer by itself does not give equal
    global norms, so that this rule cannot find it. A record that has the norms from before the
    script's clipping is as good as any other, as long as nothing clips in addition.
    """
    clips = trace.policy not in (None, "none")
    noted = [
        event for event in trace.run.events
        if event.name == "script-clips" and "left out" not in event.text
        and "with gradclip" not in event.text
    ]  # fmt: skip
    pile = find_pile(trace)
    if not pile and not (noted and clips):
        return []
    evidence: dict[str, object] = {"policy": trace.policy}
    seen = []
    if noted:
        text, _, _ = noted[0].text.partition(";")
        evidence["event"] = noted[0].text
        is_before = noted[0].extra.get("norms") == "before"
        seen.append(f"{text}, before gradclip {'clips' if is_before else 'measures it'}")
    if pile:
        evidence |= {"value": pile.value, "steps": pile.steps, "share": pile.share}
        seen.append(
            f"{pile.steps:,} norms ({pile.share:.0%}) before clipping are exactly {pile.value:.4g}"
        )
    step = noted[0].step if noted else pile.first if pile else None
    sentence = "; ".join(seen)
    twice = f", then by {trace.policy}" if clips else ""
    return [
        Finding(
            "double-clipping",
            "warning" if clips else "note",
            step,
            f"The gradient is clipped by something else{twice}: {sentence}.",
            "Remove one of the two: `gradclip run --take-over` leaves out the script's own."
            if clips
            else "This record has the norms after that clipping, and `gradclip advise` needs the "
            "norms before it. Remove that clipping and record a run.",
            evidence,
            trace.optimizer,
        )
    ]


def power_of_two_between(large: float, small: float, tolerance: float) -> int | None:
    """Return k if large = small·2ᵏ within a tolerance in k; None otherwise."""
    if not (0 < small < math.inf and 0 < large < math.inf):
        return None
    exponent = math.log2(large) - math.log2(small)
    return round(exponent) if abs(exponent - round(exponent)) <= tolerance else None
