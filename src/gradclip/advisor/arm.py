"""Judge one record as evidence on its policy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..diagnosis import Finding
from ..diagnosis.piles import find_pile, script_limit
from ..diagnosis.ruin import ruin_of
from ..diagnosis.spikes import began_at, norm_spikes
from ..diagnosis.stability import final_loss, stability_of
from ..diagnosis.window import usual_before
from ..errors import PolicyError
from ..method.policy import Policy
from ..method.read import parse
from ..method.response import Rescale
from ..method.threshold import Fixed
from ..record import Trace
from ..record.rows import Floats
from .advice import Arm, Verdict
from .material import LARGEST
from .start import LEARNT, MIN_NORMS, stuck_since, went_wrong

__all__ = ["arm_of", "is_fixed", "meant", "own_limit"]

STOOD_STILL = 0.5
"""A loss without progress for this share of the run, at its end, shows no learning."""

HARMS = {"always-binds", "removes-most"}
"""The findings on a limit that takes most of the gradient away."""

RARELY = 0.1
"""Up to this share of clipped steps a limit acts on outliers only."""

FREQUENT = 0.02
"""The smallest share of steps with spikes of the norm for a heavy tail."""

LARGE = 6.0
"""The smallest ratio of the largest spike of a heavy tail to the usual norm."""

NO_LIMIT = ("batch", "skipped", "rate")
"""The causes of a lost run that no limit prevents."""


class _Judged(NamedTuple):
    verdict: Verdict
    why: str


@np.errstate(all="ignore")
def arm_of(trace: Trace, findings: list[Finding], until: int | None = None) -> Arm:
    """Return what a record says about its policy.

    Args:
        trace: the steps of one optimizer; not mutated.
        findings: the diagnosis of these steps; not mutated.
        until: the number of losses after which the final loss is taken, so that runs of different
            lengths can be compared; None takes all.
    """
    loss = trace.column("loss")[trace.seen("loss")]
    norm = trace.column("norm")
    usable = norm[(norm > 0) & (norm <= LARGEST)]
    limit = _limits(trace)
    verdict, why = _judge(trace, findings, loss, usable)
    final = final_loss(loss[:until])
    return Arm(
        record=str(trace.run.path),
        policy=_policy(trace),
        verdict=verdict,
        why=why,
        loss=final if abs(final) <= LARGEST else None,
        steps=len(trace.steps),
        clip_rate=_clip_rate(trace, norm),
        median_norm=float(np.median(usable)) if len(usable) else None,
        limit=float(np.median(limit)) if len(limit) else None,
    )


def own_limit(trace: Trace) -> float | None:
    """Return the limit of the script's own clipping, if the norms are those before it."""
    return None if find_pile(trace) else script_limit(trace)


def meant(policy: str) -> object:
    """Return a policy by which texts of one meaning are equal, such as norm:1 and norm:1.0."""
    try:
        return parse(policy)
    except (PolicyError, TypeError, ValueError):  # A later version wrote the policy.
        return policy


def is_fixed(policy: str) -> bool:
    """Return whether a policy rescales the whole gradient's 2-norm to a fixed limit."""
    read = meant(policy)
    if not isinstance(read, Policy) or not isinstance(read.threshold, Fixed):
        return False
    whole = read.measure.scope == "global" and read.measure.order == 2.0
    return whole and isinstance(read.response, Rescale)


def _policy(trace: Trace) -> str:
    """Return the policy of the record; the script's own limit is one, too."""
    text = trace.policy or "none"
    own = own_limit(trace) if text == "none" else None
    return text if own is None else f"norm:{own:g}"


def _limits(trace: Trace) -> Floats:
    limit = trace.column("limit")
    limit = limit[(limit > 0) & (limit <= LARGEST)]
    own = own_limit(trace)
    return np.array([own]) if own is not None and not len(limit) else limit


def _clip_rate(trace: Trace, norm: Floats) -> float:
    known = np.isfinite(norm)
    if not known.any():
        return 0.0
    own = own_limit(trace)
    acted = trace.marked("clipped")
    if own is not None and not acted.any():
        acted = norm > own
    return float(acted[known].mean())


def _judge(trace: Trace, findings: list[Finding], loss: Floats, usable: Floats) -> _Judged:
    """Return the verdict on a run, the worst first."""
    faults = {finding.kind: finding for finding in findings if finding.severity != "note"}
    explosion = next((f for f in findings if "reached_at" in f.evidence), None)
    ruin = ruin_of(trace)
    if not len(usable):
        return _Judged("too little", "the record has no finite norm above zero")
    if ruin is not None and ruin.cause in NO_LIMIT and ruin.row >= MIN_NORMS:
        step = int(trace.steps[ruin.row])
        return _Judged("lost to a step", f"the run was lost at step {step:,}, after usual norms")
    found = stability_of(loss, findings) if len(loss) else None
    exploded = explosion is not None and explosion.severity == "error"
    if ruin is not None or exploded or (found is not None and found.status == "diverged"):
        wrong = went_wrong(trace, explosion)
        early = wrong is not None or len(usable) < MIN_NORMS
        why = explosion.sentence if explosion is not None else found.why if found else ""
        if early:
            step = int(trace.steps[0]) if wrong is None else wrong
            return _Judged("too little", f"the run goes wrong at step {step:,}")
        return _Judged("diverged", why or "the run is not finite at its end")
    if found is not None and found.status == "unstable":
        return _Judged("unstable", found.why)
    if still := _stands_still(trace, findings, loss):
        return _Judged("stuck", still)
    if tail := _heavy_tail(trace):
        return _Judged("unstable", tail)
    if held := next((faults[kind] for kind in sorted(HARMS) if kind in faults), None):
        return _Judged("held back", held.sentence)
    return _Judged("healthy", _course(loss))


def _stands_still(trace: Trace, findings: list[Finding], loss: Floats) -> str:
    """Return a sentence on a run that learnt nothing, or ""."""
    stuck = stuck_since(trace)
    if stuck is not None:
        return f"the run has learnt nothing since the norm spiked at step {stuck:,}"
    for finding in findings:
        share = finding.evidence.get("share_of_run")
        if finding.kind == "plateau" and isinstance(share, float) and share >= STOOD_STILL:
            return finding.sentence
    if len(loss) >= 5 * MIN_NORMS and 0 < LEARNT * began_at(loss) <= final_loss(loss):
        return f"the loss is {final_loss(loss):.4g} at the end and was {began_at(loss):.4g}"
    return ""


def _heavy_tail(trace: Trace) -> str:
    """Return a sentence on frequent and large spikes of the norm that no limit cuts, or "".

    The losses of such runs are better with a limit near the median norm than without one.
    """
    norm = trace.column("norm")
    spikes = norm_spikes(norm)
    if not len(norm) or spikes.mean() < FREQUENT or _clip_rate(trace, norm) > RARELY:
        return ""
    largest = float(np.nanmax((norm / usual_before(norm).median)[spikes]))
    if not largest >= LARGE:
        return ""
    return (
        f"the norms have a heavy tail: {spikes.mean():.1%} of them are spikes, and the largest is "
        f"{largest:.3g} times the usual norm"
    )


def _course(loss: Floats) -> str:
    if not len(loss):
        return "the record has no loss, and the norms show no fault"
    return f"its loss went from {began_at(loss):.4g} to {final_loss(loss):.4g}"
