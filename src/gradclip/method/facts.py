"""Three facts of a policy: what its limit follows, what it remembers, and what a step costs.

Each answer follows from the parts of the policy; nobody states it. The docs and `gradclip methods`
show the answers, and tests compare them with what the backends do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..show.words import counted
from .policy import AnyPolicy, Wrapped
from .response import Normalise, NormaliseLarge, Smooth
from .traits import parts_of, traits_of

__all__ = ["COSTS", "Facts", "facts_of", "remembered"]

COSTS = {
    "read": "the method reads each gradient once; a clipped step also writes the gradient",
    "read, write": "the method reads and writes each gradient",
    "weights": "the method also reads the weight of each gradient",
    "each value": "the method reads and writes each value, and the numbers that it remembers",
    "matrices": "the method decomposes each matrix",
}
"""The classes of cost, from the cheapest on, with the work at each step."""

_PLACES = {
    "global": "",
    "loss": "",
    "tensor": " per tensor",
    "unit": " per unit",
    "singular": " per singular value",
    "element": " per value",
}
_FOLLOWED = {**_PLACES, "global": "to norms", "loss": "to losses", "singular": " per matrix"}


@dataclass(frozen=True)
class Facts:
    """Three answers in words.

    Attributes:
        adapts: what the limit follows, or "no" for a limit that is given.
        remembers: the numbers that are kept from step to step, or "nothing".
        cost: a key of `COSTS`.
    """

    adapts: str
    remembers: str
    cost: str


def facts_of(policy: AnyPolicy) -> Facts:
    """Return the facts of a policy.

    Example:
        >>> from gradclip import agc, spam, zclip
        >>> facts_of(zclip())
        Facts(adapts='to norms', remembers='3 numbers', cost='read')
        >>> facts_of(spam()).remembers, facts_of(agc()).adapts
        ('2 numbers per value', 'to weights')
    """
    kept = [counted(n, "number") + _PLACES[scope] for scope, n in remembered(policy).items()]
    return Facts(_adapts(policy), " and ".join(kept) or "nothing", _cost(policy))


def remembered(policy: AnyPolicy) -> dict[str, int]:
    """Return how many numbers a policy remembers for each norm of a scope, by scope.

    A wrapper remembers arrays like the gradients: numbers for each value.
    """
    found: Counter[str] = Counter()
    for part in parts_of(policy):
        if isinstance(part, Wrapped):
            found["element"] += len(part.source.holds)
        else:
            found[part.measure.scope] += _size(part.threshold.init(np.zeros(1), np))
    return {scope: count for scope, count in found.items() if count}


def _size(memory: object) -> int:
    if isinstance(memory, dict):
        return sum(map(_size, memory.values()))
    return int(np.size(memory))  # type: ignore[arg-type]


def _adapts(policy: AnyPolicy) -> str:
    inner = [part for part in parts_of(policy) if not isinstance(part, Wrapped)]
    scopes = [p.measure.scope for p in inner if p.threshold.init(np.zeros(1), np)]
    followed = dict.fromkeys(_FOLLOWED[scope].strip() for scope in scopes)
    if traits_of(policy).weights:
        followed["to weights"] = None
    return " and ".join(followed) or "no"


def _cost(policy: AnyPolicy) -> str:
    traits = traits_of(policy)
    parts = list(parts_of(policy))
    if traits.singular:
        return "matrices"
    if traits.real:  # Values are changed one by one, or a wrapper keeps arrays.
        return "each value"
    if traits.weights:
        return "weights"
    always = (Smooth, Normalise, NormaliseLarge)
    changes = any(isinstance(p.response, always) for p in parts if not isinstance(p, Wrapped))
    return "read, write" if changes else "read"
