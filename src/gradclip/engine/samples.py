"""A policy about one gradient, applied to the gradient of each sample: what all backends share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..arrays import Array, Factors, Namespace, Norms, Scalar
from ..errors import PolicyError
from ..method.plan import Stage, plan
from ..method.policy import AnyPolicy, ByName, Policy
from ..method.response import Clamp, Normalise, NormaliseLarge, Rescale, Smooth, Zero
from ..method.threshold import (
    Context,
    Fixed,
    Limits,
    Moving,
    OnlineQuantile,
    RatioToWeight,
    Share,
    State,
)

__all__ = ["EPS", "WRITTEN", "Squares", "factors_of", "rows_of", "stages_of", "together", "upper"]

EPS = 2.0**-52
"""Twice the error of one rounding in float64, so that what the bounds leave out has room."""
WRITTEN = ("element", "unit")
"""The scopes that take a sample's gradient apart, so that the gradient must be written out."""

_Kinds = tuple[tuple[type, ...], tuple[type, ...]]
_FACTORS = (Rescale, Smooth, Normalise, NormaliseLarge, Zero)
_FIXED = (Fixed, Moving)
_KINDS: dict[str, _Kinds] = {
    "global": ((*_FIXED, OnlineQuantile), _FACTORS),
    "tensor": ((*_FIXED, Share, OnlineQuantile), _FACTORS),
    "unit": ((*_FIXED, RatioToWeight), _FACTORS),
    "element": (_FIXED, (Clamp, Smooth)),
}
"""By scope, the thresholds and the responses that go with samples."""


class Squares(NamedTuple):
    """The squared norm of each sample's gradient, in float64.

    Attributes:
        values: shape (B,), ≥ 0.
        slack: shape (B,); the exact squared norm is at most values + slack.
    """

    values: Array
    slack: Array


def upper(squares: Squares, xp: Namespace) -> Norms:
    """Return a norm that is not under the exact one, nor under what a response makes of it."""
    return xp.sqrt(squares.values + squares.slack) * (1 + 32 * EPS)


def together(parts: Sequence[Squares], xp: Namespace) -> Squares:
    """Return the squared norms of several parameters' gradients as one."""
    values = xp.sum(xp.stack([part.values for part in parts]), axis=0)
    slack = xp.sum(xp.stack([part.slack for part in parts]), axis=0)
    return Squares(values, slack + (len(parts) + 1) * EPS * values)


def stages_of(policy: AnyPolicy, names: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of a policy that can be about one sample's gradient.

    Args:
        policy: one policy, or policies by the parameters' names.
        names: the names of all parameters that are trained.

    Raises:
        PolicyError: the policy is a chain or has a wrapper, or a part of it does not go with
            samples; says which would.
    """
    for rule in [each for _, each in policy.rules] if isinstance(policy, ByName) else [policy]:
        if rule is not None:
            _refuse(rule)
    stages = [stage for layer in plan(policy, names) for stage in layer]
    return tuple(s for s in stages if isinstance(s, Stage) and s.members)


def _refuse(policy: object) -> None:
    if not isinstance(policy, Policy):
        remedy = "for samples, give one policy, such as by_norm(1.0), or one for each name"
        raise PolicyError.of("policy", policy, remedy)
    measure = policy.measure
    if measure.scope not in _KINDS or measure.relative is not None:
        remedy = f"for samples, give the scope {', '.join(_KINDS)}, of the gradient of one sample"
        raise PolicyError.of("policy.measure", measure, remedy)
    if measure.order != 2.0:
        raise PolicyError.of("policy.measure.order", measure.order, "for samples, give order=2")
    for part, kinds in zip(("threshold", "response"), _KINDS[measure.scope], strict=True):
        if not isinstance(getattr(policy, part), kinds):
            known = ", ".join(kind.__name__ for kind in kinds)
            remedy = f"for samples and scope={measure.scope!r}, the {part} is one of {known}"
            raise PolicyError.of(f"policy.{part}", getattr(policy, part), remedy)


def rows_of(stage: Stage, squares: Sequence[Squares], xp: Namespace) -> list[Squares]:
    """Return the squared norms that a stage looks at: of each parameter, or of all as one.

    Args:
        stage: from `stages_of`.
        squares: those of the stage's own parameters.
        xp: the array namespace.
    """
    return list(squares) if stage.policy.measure.scope == "tensor" else [together(squares, xp)]


def factors_of(
    stage: Stage,
    rows: Sequence[Squares],
    scale: Array | float,
    state: State,
    step: Scalar | int,
    xp: Namespace,
) -> tuple[Factors, Limits, State]:
    """Return the factors, shape (rows, B), the limits and the new memory of a stage.

    The threshold learns from the norms; the response gets norms that are not under the exact ones,
    so that what the response keeps under a limit stays there.

    Args:
        stage: from `stages_of`.
        rows: from `rows_of`.
        scale: what the norms of each sample are to be multiplied by first, shape (B,) or ().
        state: the memory of the threshold, with one value for each of the rows·B norms.
        step: how many steps came before.
        xp: the array namespace.
    """
    norms = xp.stack([xp.sqrt(row.values) for row in rows]) * scale
    most = xp.stack([upper(row, xp) for row in rows]) * scale
    flat = xp.reshape(norms, (-1,))
    limits, new = stage.policy.threshold.update(state, flat, Context(step=step), xp)
    response = stage.policy.response
    assert isinstance(response, Rescale | Smooth | Normalise | NormaliseLarge | Zero)
    factors = response.factors(xp.reshape(most, (-1,)), limits, xp)
    return xp.reshape(factors, norms.shape), limits, new
