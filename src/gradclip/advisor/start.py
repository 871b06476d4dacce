"""Advice from a run that failed early: the norms before the failure."""

from __future__ import annotations

import numpy as np

from ..diagnosis import Finding
from ..diagnosis.spikes import began_at, first_of, loss_spikes, norm_spikes
from ..record import Trace
from ..record.rows import Floats

__all__ = ["MIN_NORMS", "guess", "norms_before", "stuck_since", "went_wrong"]

MIN_NORMS = 10
"""Norms before a run goes wrong that quantiles need; with fewer the advice is a first guess."""

GUESS = 0.1
"""Times the smallest norm before a run went wrong at its start. The smallest, as what exploded at
step 3 had grown at step 2 already. Far under it, as the risks differ: a limit that is too low makes
a slow run whose record tells more, one that is too high another failed run that tells nothing."""

LOWER = 0.5
"""Times the limit that did not prevent it."""

LEARNT = 0.9
"""Of its first losses: a run whose last losses are no lower than this has learnt nothing."""


def went_wrong(trace: Trace, explosion: Finding | None) -> int | None:
    """Return the step, among the first, at which the run exploded; None if it did not.

    It also did if the loss rose to more than twice that of no training.
    """
    first = first_of(trace.column("loss"))
    steps = [spike.step for spike in loss_spikes(trace) if not spike.rise < abs(first)]
    steps += [explosion.step] if explosion is not None and explosion.step is not None else []
    wrong = min(steps, default=None)
    if wrong is None or (trace.steps < wrong).sum() >= MIN_NORMS:
        return None
    return wrong


def stuck_since(trace: Trace) -> int | None:
    """Return the step of the norm spike after which the run learnt nothing; None if it learnt.

    Such a run is often dead: its later norms are those of a model that no longer moves.
    """
    loss = trace.column("loss")
    last = loss[np.isfinite(loss)][-MIN_NORMS:]
    spikes = np.flatnonzero(norm_spikes(trace.column("norm")))
    if len(trace.steps) < 5 * MIN_NORMS or not len(last) or not len(spikes):
        return None
    # A loss may be negative; then its share says nothing.
    if not 0 < LEARNT * began_at(loss) <= float(np.median(last)):
        return None
    return int(trace.steps[spikes[0]])


def norms_before(trace: Trace, step: int, largest: float) -> Floats:
    """Return the norms above zero before a step."""
    norm = trace.column("norm")
    return norm[(trace.steps < step) & (norm > 0) & (norm <= largest)]


def guess(trace: Trace, wrong: int, largest: float) -> float | None:
    """Return a threshold under the norms before a step, and under the limit then in force."""
    before, limit = norms_before(trace, wrong, largest), trace.column("limit")
    if not len(before):
        return None
    used = limit[np.isfinite(limit) & (limit > 0)][:1].tolist()
    least = min([GUESS * float(before.min()), *(LOWER * size for size in used)])
    return least if least > 0 else None  # A tenth of the smallest float is 0.
