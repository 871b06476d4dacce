"""What a policy looks at, remembers and may do: derived from its parts, so that nobody states it.

The backends read none of this. The docs, `gradclip methods` and the contract's tests do, and the
tests check on every backend that each trait is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from ..arrays import Array
from .limit import Moving, replaced
from .policy import AnyPolicy, ByName, Chain, Policy, Wrapped
from .response import Clamp, Skip, ValueResponse
from .threshold import Context, Limits

__all__ = ["Traits", "traits_of"]


@dataclass(frozen=True)
class Traits:
    """What holds for a policy, whatever the gradients.

    Attributes:
        memory: the policy remembers something from step to step.
        weights: the policy compares gradients with weights.
        loss: the policy looks at the loss.
        real: the policy refuses complex gradients.
        elementwise: the policy looks at single values, or at single singular values.
        singular: the policy looks at the singular values of matrices.
        enlarges: the policy may return more than it was given.
        carries: the output holds more than this step's gradient, such as a momentum or a rest.
        skips: the policy may leave out a whole step.
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
    """Return the traits of a policy; a chain, or rules by name, has those of all its parts.

    Example:
        >>> from gradclip import by_norm, with_feedback
        >>> traits_of(by_norm(1.0)) == Traits()
        True
        >>> traits_of(with_feedback(by_norm(1.0))).carries
        True
    """
    found = [_of_one(part) for part in _parts(policy)]
    return Traits(**{f.name: any(getattr(one, f.name) for one in found) for f in fields(Traits)})


def _parts(policy: AnyPolicy) -> Iterator[Policy | Wrapped]:
    """Yield the policies that are applied, and each wrapper before the policies inside."""
    if isinstance(policy, Chain):
        for link in policy.policies:
            yield from _parts(link)
    elif isinstance(policy, ByName):
        for _, rule in policy.rules:
            if rule is not None:
                yield from _parts(rule)
    else:
        yield policy
        if isinstance(policy, Wrapped):
            yield from _parts(policy.inner)


def _of_one(policy: Policy | Wrapped) -> Traits:
    if isinstance(policy, Wrapped):
        return Traits(memory=True, real=True, enlarges=True, carries=True)
    policy = replaced(policy, lambda _: Moving(1.0))
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
    """Run the threshold on one norm; return whether it remembers, asks for weights, and limits."""
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
    """Return whether a lower limit moves something away from zero."""
    if isinstance(policy.response, Clamp):
        low, high = limits.low, limits.high
        return (low is not None and bool(low > 0)) or (high is not None and bool(high < 0))
    return limits.low is not None
