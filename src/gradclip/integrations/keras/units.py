"""The output units of a Keras weight lie on the last axis, whatever the backend is."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ...method.policy import AnyPolicy, ByName, Chain, Policy, Wrapped

P = TypeVar("P", Chain, ByName, Wrapped)

__all__ = ["units_last"]


def units_last(policy: AnyPolicy) -> AnyPolicy:
    """Return a policy that takes the last axis for the units where it names no axis.

    The kernel of a Keras layer has the shape (inputs, outputs). NumPy's and torch's convention in
    gradclip is the first axis, and JAX's the last one.
    """
    if isinstance(policy, Policy):
        measure = policy.measure
        if measure.scope != "unit" or measure.axis is not None:
            return policy
        return replace(policy, measure=replace(measure, axis=-1))
    if isinstance(policy, Chain):
        return _changed(policy, "policies", tuple(map(units_last, policy.policies)))
    if isinstance(policy, ByName):
        rules = [(name, rule if rule is None else units_last(rule)) for name, rule in policy.rules]
        return _changed(policy, "rules", tuple(rules))
    return _changed(policy, "inner", units_last(policy.inner))


def _changed(policy: P, name: str, value: object) -> P:
    """Return a policy with another field; the same object, which prints as before, if equal."""
    return policy if getattr(policy, name) == value else replace(policy, **{name: value})
