"""The traits of a policy: its inputs, its memory and its effects, derived from its parts.

The backends do not read the traits. The docs, `gradclip methods` and the contract tests read them,
and the tests check on every backend that each trait is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from ..arrays import Array
from .policy import AnyPolicy, ByName, Chain, Policy, Wrapped
from .response import Clamp, Skip, ValueResponse
from .threshold import Context, Limits

__all__ = ["Traits", "parts_of", "traits_of"]


@dataclass(frozen=True)
class Traits:
    """Facts that hold for a policy with any gradients.

    Attributes:
        memory: the policy remembers values from step to step.
        weights: the policy compares gradients with weights.
        loss: the policy reads the loss.
        real: the policy refuses complex gradients.
        elementwise: the policy measures single values, or single singular values.
        singular: the policy measures the singular values of matrices.
        enlarges: the policy may return a gradient that is larger than the gradient it was given.
        carries: the output depends on earlier gradients, as a momentum does.
        skips: the policy may skip a whole step.
    """

    memory: bool = False
    weights: bool = False
    loss: bool = False
    real: bool = False
    elementwise: bool = False
    singular: bool = False
    enlarges: bool = False
    carries: bool = False
    skips: bool = False


def traits_of(policy: AnyPolicy) -> Traits:
    """Return the traits of a policy; a chain or rules by name have the traits of all their parts.

    Example:
        >>> from gradclip import by_norm, with_feedback
        >>> traits_of(by_norm(1.0)) == Traits()
        True
        >>> traits_of(with_feedback(by_norm(1.0))).carries
        True
    """
    found = [_of_one(part) for part in parts_of(policy)]
    return Traits(**{f.name: any(getattr(one, f.name) for one in found) for f in fields(Traits)})


def parts_of(policy: AnyPolicy) -> Iterator[Policy | Wrapped]:
    """Yield the policies of a policy, and each wrapped policy before its inner policies."""
    if isinstance(policy, Chain):
        for link in policy.policies:
            yield from parts_of(link)
    elif isinstance(policy, ByName):
        for _, rule in policy.rules:
            if rule is not None:
                yield from parts_of(rule)
    else:
        yield policy
        if isinstance(policy, Wrapped):
            yield from parts_of(policy.inner)


def _of_one(policy: Policy | Wrapped) -> Traits:
    if isinstance(policy, Wrapped):
        return Traits(memory=True, real=True, enlarges=True, carries=True)
    measure, response = policy.measure, policy.response
    remembers, asked, limits = _tried(policy)
    elementwise = measure.scope in ("element", "singular")
    return Traits(
        memory=remembers,
        weights=asked or measure.relative is not None,
        loss=measure.scope == "loss",
        real=elementwise or isinstance(response, ValueResponse),
        elementwise=elementwise,
        singular=measure.scope == "singular",
        enlarges=response.enlarges or _raises(policy, limits),
        skips=isinstance(response, Skip),
    )


def _tried(policy: Policy) -> tuple[bool, bool, Limits]:
    """Run the threshold on one norm.

    Returns:
        Whether the threshold has a memory, whether it reads the weights, and its limits.
    """
    norms = np.ones(1)
    asked: list[str] = []

    def weights() -> Array:
        asked.append("weights")
        return norms

    state = policy.threshold.init(norms, np)
    limits, _ = policy.threshold.update(
        state, norms, Context(weights, lambda: norms, lambda _: norms), np
    )
    return bool(state), bool(asked), limits


def _raises(policy: Policy, limits: Limits) -> bool:
    """Return whether the limits can move a value or a norm away from zero."""
    if isinstance(policy.response, Clamp):
        up = limits.low is not None and bool(np.any(limits.low > 0))
        return up or (limits.high is not None and bool(np.any(limits.high < 0)))
    return limits.low is not None
