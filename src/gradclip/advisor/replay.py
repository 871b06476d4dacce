"""Apply policies to recorded norms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..method.policy import AnyPolicy
from ..method.read import by_name
from ..numpy import clip
from ..record.rows import Floats

__all__ = ["replay"]


def replay(policies: Mapping[str, AnyPolicy], norms: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the norms after each policy, step by step.

    A gradient of one value has its own magnitude as its norm, so the policies run on arrays of one
    element: one array for a policy of one global norm, one for each layer for a policy of each
    layer's norm. All policies run in one pass, as rules by name, and each has its own norm and its
    own memory.

    Args:
        policies: from a name without special characters to a policy; not mutated.
        norms: from the same names to the norms before the policy, shape (steps, arrays), finite,
            ≥ 0; not mutated.

    Returns:
        From the same names to the norms after the policy, shape (steps, arrays).
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
