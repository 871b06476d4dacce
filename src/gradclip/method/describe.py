"""A policy in words: its scope, threshold, response and memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import Recipe
from .policy import AnyPolicy, ByName, Policy, Wrapped
from .read import parse

__all__ = ["Description", "describe", "describe_recipe"]


class Description(NamedTuple):
    """The description of a policy in four texts.

    Attributes:
        scope: the scope of the measure, and the order if it is not 2.
        threshold: the type of the threshold.
        response: the type of the response, with the source of a wrapper.
        state: the names of the remembered arrays, or "none".
    """

    scope: str
    threshold: str
    response: str
    state: str


def describe_recipe(recipe: Recipe) -> Description:
    """Describe the policy of a recipe's example.

    Example:
        >>> from gradclip.method.catalogue import lookup
        >>> describe_recipe(lookup("zclip"))
        Description(scope='global', threshold='ZScore', response='Rescale', \
state='mean, variance, count')
    """
    return describe(parse(recipe.example))


def describe(policy: AnyPolicy) -> Description:
    """Describe a policy; bars separate the descriptions of a chain's policies."""
    if isinstance(policy, Wrapped):
        inner = describe(policy.inner)
        held = ", ".join(policy.source.holds)
        state = held if inner.state == "none" else f"{held}, {inner.state}"
        wrapped = f"{type(policy.source).__name__}({inner.response})"
        return inner._replace(response=wrapped, state=state)
    if isinstance(policy, Policy):
        memory = policy.threshold.init(np.zeros(1), np)
        order = policy.measure.order
        return Description(
            policy.measure.scope + (f", {order}" if order != 2.0 else ""),
            type(policy.threshold).__name__,
            type(policy.response).__name__,
            ", ".join(_leaves(memory)) or "none",
        )
    parts = [rule for _, rule in policy.rules] if isinstance(policy, ByName) else policy.policies
    described = [describe(part) for part in parts if part is not None]
    if not described:
        return Description("none", "none", "none", "none")
    return Description(*(" | ".join(column) for column in zip(*described, strict=True)))


def _leaves(memory: dict[str, object]) -> list[str]:
    """Return the names of the remembered arrays, also of nested thresholds."""
    found: list[str] = []
    for name, value in memory.items():
        found += _leaves(value) if isinstance(value, dict) else [name]
    return found
