"""Run the policies themselves on recorded norms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..method.policy import AnyPolicy
from ..method.read import by_name
from ..numpy import clip
from ..record.rows import Floats

__all__ = ["replay"]


def replay(policies: Mapping[str, AnyPolicy], norms: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the norms after each policy, step after step.

    A gradient of one value is its own norm, so the real policies run on one-element arrays: one
    for a policy of one global norm, one for each layer of a policy that takes each by itself. All
    policies run in one pass, as rules by name: each has its own norm and its own memory.

    Args:
        policies: by a name without special characters.
        norms: for each policy the norms it sees, shape (steps, arrays), finite, ≥ 0.

    Returns:
        For each policy the norms after it, shape (steps, arrays).
    """
    rules = by_name({f"{name}.*": policy for name, policy in policies.items()})
    keys = {name: [f"{name}.{i}" for i in range(norms[name].shape[1])] for name in policies}
    left = {name: np.empty_like(norms[name]) for name in policies}
    steps = len(next(iter(norms.values()))) if norms else 0
    state = None
    for step in range(steps):
        grads = {
            key: norms[name][step, place : place + 1]
            for name in policies
            for place, key in enumerate(keys[name])
        }
        clipped, state, _ = clip(grads, rules, state, nonfinite="propagate")
        for name in policies:
            left[name][step] = [clipped[key][0] for key in keys[name]]
    return left
