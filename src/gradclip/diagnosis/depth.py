"""How the gradient's size changes from the input's side of a model to the output's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..record.rows import Floats
from ..record.trace import Trace
from .window import median

__all__ = ["MIN_LAYERS", "MONOTONE", "OFTEN", "STEEP", "Profile", "profiles"]

MIN_LAYERS = 5
"""Weight matrices that a trend over depth needs."""

STEEP = 50.0
"""How many times the norms of the first and the last quarter of the layers may differ: healthy
models stay within ten."""

MONOTONE = 0.8
"""Rank correlation of norm and depth from which the change is a trend, not one odd layer."""

BLOCKS = 20
"""Stretches of a run that are looked at separately."""

FURTHEST = 700.0
"""The largest logarithm of a ratio that is told apart: exp of it and of its negative are floats."""

OFTEN = 0.25
"""Share of the stretches that must be steep if the last is not: many runs begin steep."""


class Profile(NamedTuple):
    """The layers' norms in one stretch of the run, the input's side first."""

    step: int
    """First step of the stretch."""
    names: tuple[str, ...]
    norms: Floats
    """Median over the stretch."""
    trend: float
    """Rank correlation of norm and depth, -1 to 1; positive: larger towards the output."""
    ratio: float
    """Median norm of the last quarter of the layers over that of the first."""
    per_layer: float
    """Factor from one layer to the next towards the input, by a line through the logarithms."""


def profiles(trace: Trace) -> list[Profile]:
    """Return the profile of each stretch of the run; none for fewer than five weight matrices.

    Layers are the parameters of two or more dimensions, in the optimizer's order, which is the
    model's, which is taken to run from the input to the output. A layer whose norms were all
    absent, or not finite, is left out of a stretch; a zero counts as the smallest float.
    """
    steps, names, matrix = trace.norms
    shapes = {
        parameter.name: parameter.shape
        for optimizer in trace.run.optimizers
        if optimizer.id == trace.optimizer
        for parameter in optimizer.parameters
    }
    layers = [i for i, name in enumerate(names) if len(shapes.get(name, ())) >= 2]
    if len(layers) < MIN_LAYERS or not len(steps):
        return []
    found = []
    for rows in np.array_split(np.arange(len(steps)), min(BLOCKS, len(steps))):
        norms = np.array([median(matrix[rows, layer]) for layer in layers])
        here = np.isfinite(norms) & (norms >= 0)
        if here.sum() >= MIN_LAYERS:
            known = tuple(names[layer] for layer, kept in zip(layers, here, strict=True) if kept)
            found.append(_profile(int(steps[rows[0]]), known, norms[here]))
    return found


def _profile(step: int, names: tuple[str, ...], norms: Floats) -> Profile:
    logs = np.log(np.maximum(norms, np.finfo(np.float64).tiny))
    depth = np.arange(len(logs), dtype=np.float64)
    quarter = max(1, len(logs) // 4)
    gap = np.median(logs[-quarter:]) - np.median(logs[:quarter])
    slope = np.polyfit(depth, logs, 1)[0]
    trend = 0.0
    if np.ptp(logs) > 0:
        trend = float(np.corrcoef(_ranks(logs), depth)[0, 1])
    ratio, per_layer = np.exp(np.clip([gap, -slope], -FURTHEST, FURTHEST))
    return Profile(step, names, norms, trend, float(ratio), float(per_layer))


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value; equal ones share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]
