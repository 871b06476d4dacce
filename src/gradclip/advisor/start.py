"""Find a failure near the start of a run, and a run that learnt nothing."""

from __future__ import annotations

import numpy as np

from ..diagnosis import Finding
from ..diagnosis.spikes import began_at, first_of, loss_spikes, norm_spikes
from ..record import Trace

__all__ = ["LEARNT", "MIN_NORMS", "stuck_since", "went_wrong"]

MIN_NORMS = 10
"""The smallest number of norms before a failure from which something can be learnt."""

LEARNT = 0.9
"""A run whose last losses are not under this share of its first losses has learnt nothing."""


def went_wrong(trace: Trace, explosion: Finding | None) -> int | None:
    """Return the step, among the first ones, at which the run failed, or None.

    A run fails if it explodes, or if its loss rises to more than twice the first loss.
    """
    first = first_of(trace.column("loss"))
    steps = [spike.step for spike in loss_spikes(trace) if not spike.rise < abs(first)]
    steps += [explosion.step] if explosion is not None and explosion.step is not None else []
    wrong = min(steps, default=None)
    if wrong is None or (trace.steps < wrong).sum() >= MIN_NORMS:
        return None
    return wrong


def stuck_since(trace: Trace) -> int | None:
    """Return the step of the norm spike after which the run learnt nothing, or None.

    Such a run is often dead: its later norms come from a model that no longer changes.
    """
    loss = trace.column("loss")
    last = loss[np.isfinite(loss)][-MIN_NORMS:]
    spikes = np.flatnonzero(norm_spikes(trace.column("norm")))
    if len(trace.steps) < 5 * MIN_NORMS or not len(last) or not len(spikes):
        return None
    # The rule holds only for positive losses: a share of a negative loss has no meaning.
    if not 0 < LEARNT * began_at(loss) <= float(np.median(last)):
        return None
    return int(trace.steps[spikes[0]])
