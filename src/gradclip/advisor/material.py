"""The norms of a record that can be replayed, and the score of each policy on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..diagnosis import Finding
from ..diagnosis.spikes import loss_spikes, norm_bound
from ..method.policy import AnyPolicy, Policy
from ..record import Trace
from ..record.rows import Floats
from .advice import Replayed
from .replay import replay

__all__ = ["LARGEST", "MOST_STEPS", "Material", "material_of", "scores"]

CUT = 0.1
"""An ordinary step that loses more than this share of its norm is a false alarm."""

MOST_STEPS = 2000
"""The largest number of steps in a replay, the last ones. A step takes about 2 ms, and this number
is enough for the rates."""

LARGEST = 1e150
"""A larger norm counts as non-finite, because its square may not be a finite float."""


class Material(NamedTuple):
    """The part of a trace that can be replayed."""

    norm: Floats
    """The finite norms, in the order of the steps."""
    bound: Floats
    """The bound of each norm, over which the norm is a spike; NaN if there is no bound."""
    growth: NDArray[np.bool_]
    """Whether the step is part of an explosion."""
    led: NDArray[np.bool_]
    """Whether the norm is a spike before a spike of the loss."""
    layers: Floats | None
    """The norm of each layer at these steps, 0 for a layer without a gradient."""
    nonfinite: int
    """The number of steps with a non-finite norm."""
    calm: Floats
    """The norms above zero outside of an explosion, whose quantiles are thresholds to try."""


def material_of(trace: Trace, explosion: Finding | None) -> Material | None:
    """Return the material of the replay; None without a finite norm above zero.

    The material leaves out the steps after an explosion from which the run did not recover.

    Args:
        trace: the steps of one optimizer; not mutated.
        explosion: the finding on an explosion over time, or None.
    """
    norm, bound = trace.column("norm"), norm_bound(trace.column("norm"))
    usable = np.isfinite(norm) & (norm >= 0) & (norm <= LARGEST)
    nonfinite = int((trace.seen("norm") & ~usable).sum())
    growth = np.zeros(len(norm), dtype=np.bool_)
    if explosion is not None and explosion.step is not None:
        reached = explosion.evidence["reached_at"]
        assert isinstance(reached, int)
        growth = (trace.steps >= explosion.step) & (trace.steps <= reached)
        usable &= (trace.steps <= reached) | (explosion.severity != "error")
    led = np.isin(trace.steps, [spike.norm_step or -1 for spike in loss_spikes(trace)])
    bound = np.where(led & np.isnan(bound), norm_bound(norm, least=1), bound)
    layers = _layers(trace)
    if layers is not None:
        usable &= np.isfinite(layers).all(axis=1) & (layers <= LARGEST).all(axis=1)
    rows = np.flatnonzero(usable)
    calm = norm[rows[~growth[rows]]]
    if not (calm > 0).any():
        calm = norm[rows]
    if not (calm > 0).any():
        return None
    rows = rows[-MOST_STEPS:]
    picked = None if layers is None else layers[rows]
    return Material(
        norm[rows], bound[rows], growth[rows], led[rows], picked, nonfinite, calm[calm > 0]
    )


def scores(grid: list[AnyPolicy], material: Material) -> list[Replayed]:
    """Return the effect of each policy on the norms of the material."""
    alone = material.norm[:, None]
    policies = {f"p{index}": policy for index, policy in enumerate(grid)}
    norms = {}
    for name, policy in policies.items():
        each = isinstance(policy, Policy) and policy.measure.scope == "tensor"
        assert not each or material.layers is not None
        norms[name] = material.layers if each and material.layers is not None else alone
    left = replay(policies, norms)
    return [
        _score(str(policy), norms[name], left[name], material) for name, policy in policies.items()
    ]


def _layers(trace: Trace) -> Floats | None:
    """Return the norm of each layer, 0 for an absent gradient; None if a step lacks the norms."""
    steps, names, matrix = trace.norms
    if len(names) < 2 or len(steps) != len(trace.steps) or (steps != trace.steps).any():
        return None
    return np.where(np.isnan(matrix) & ~trace.nonfinite[:, None], 0.0, matrix)


def _score(policy: str, before: Floats, after: Floats, material: Material) -> Replayed:
    with np.errstate(all="ignore"):
        total = np.sqrt((before**2).sum(axis=1))
        gone = np.where(total > 0, np.sqrt(((before - after) ** 2).sum(axis=1)) / total, 0.0)
        share = np.where(total > 0, np.sqrt((after**2).sum(axis=1)) / total, 1.0)
    clipped = (before != after).any(axis=1)
    spike = material.norm > material.bound
    # An explosion has no usual norm: a policy catches a step if it removes over a tenth of it.
    caught = np.where(material.growth & ~spike, gone > CUT, material.norm * share <= material.bound)
    spike |= material.growth
    alarm = ~spike & (gone > CUT)
    led = material.led & spike
    return Replayed(
        policy=policy,
        clip_rate=float(clipped.mean()),
        removed=float(gone.mean()),
        removed_when_clipped=float(gone[clipped].mean()) if clipped.any() else None,
        spikes=int(spike.sum()),
        spikes_caught=int((spike & caught).sum()),
        loss_spikes=int(led.sum()),
        loss_spikes_caught=int((led & caught).sum()),
        false_alarms=int(alarm.sum()),
        false_alarm_rate=float(alarm.sum() / max((~spike).sum(), 1)),
        nonfinite=material.nonfinite,
    )
