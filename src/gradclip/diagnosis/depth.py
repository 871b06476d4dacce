"""Measure how the gradient's norm changes from the input of a model to its output."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..record.rows import Floats
from ..record.trace import Trace
from .window import median

__all__ = ["MIN_LAYERS", "MONOTONE", "OFTEN", "STEEP", "Profile", "profiles"]

MIN_LAYERS = 5
"""The smallest number of weight matrices for a trend over depth."""

STEEP = 50.0
"""The ratio of the norms in the first and the last quarter of the layers that is a fault; in
healthy models the ratio is at most ten."""

MONOTONE = 0.8
"""The rank correlation of norm and depth from which the change is a trend, not one odd layer."""

BLOCKS = 20
"""The number of stretches of a run, each of which has its own profile."""

FURTHEST = 700.0
"""The bound of the logarithm of a ratio, so that the ratio and its inverse are finite floats."""

OFTEN = 0.25
"""The share of stretches that must be steep if the last one is not, since many runs begin steep."""


class Profile(NamedTuple):
    """The layers' norms in one stretch of the run, from the input to the output."""

    step: int
    """The first step of the stretch."""
    names: tuple[str, ...]
    norms: Floats
    """The median norm of each layer over the stretch."""
    trend: float
    """The rank correlation of norm and depth, -1 to 1; positive if norms grow to the output."""
    ratio: float
    """The median norm of the last quarter of the layers over the median norm of the first."""
    per_layer: float
    """Factor from one layer to the next towards the input, from a line through the logarithms."""


def profiles(trace: Trace) -> list[Profile]:
    """Return the profile of each stretch of the run.

    The layers are the parameters of two or more dimensions, in the optimizer's order. We assume
    that this order goes from the input to the output. A stretch leaves out a layer without a
    finite norm, and a layer whose norm is zero, which is dead.

    Args:
        trace: the steps of one optimizer; not mutated.

    Returns:
        The profiles in the order of the steps; empty with fewer than `MIN_LAYERS` layers.
    """
    steps, names, matrix = trace.norms
    described = trace.run.described(trace.optimizer)
    parameters = described.parameters if described else ()
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    layers = [i for i, name in enumerate(names) if len(shapes.get(name, ())) >= 2]
    if len(layers) < MIN_LAYERS or not len(steps):
        return []
    found = []
    for rows in np.array_split(np.arange(len(steps)), min(BLOCKS, len(steps))):
        norms = np.array([median(matrix[rows, layer]) for layer in layers])
        here = np.isfinite(norms) & (norms > 0)
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
    """Return the rank of each value; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]
