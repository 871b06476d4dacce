"""A policy about one gradient, applied to the gradient of each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from ...errors import PolicyError
from ...method.measure import combine
from ...method.plan import Stage, plan
from ...method.policy import AnyPolicy, ByName, Policy
from ...method.response import Normalise, Rescale, Smooth, Zero
from ...method.threshold import Context, Fixed, Moving, OnlineQuantile
from .forms import Squares, together, upper

__all__ = ["Decided", "Rules", "rules_of"]

_THRESHOLDS = (Fixed, Moving, OnlineQuantile)
_RESPONSES = (Rescale, Smooth, Normalise, Zero)


class Decided(NamedTuple):
    """What the rules make of the samples of one batch.

    Attributes:
        coefs: shape (parameters, B), what each parameter's gradient of each sample is multiplied
            by.
        moves: for each stage, how the logarithm of its limits moves, summed over the samples:
            shape (limits,); None of a stage that remembers nothing.
        bound: shape (), what the norm of each sample is at most, after this.
    """

    coefs: Tensor
    moves: list[Tensor | None]
    bound: Tensor


@dataclass(frozen=True)
class Rules:
    """The stages of a policy, each over some of the parameters; no two share a parameter.

    Attributes:
        stages: from `plan`.
        count: the number of all parameters.
    """

    stages: tuple[Stage, ...]
    count: int

    def begin(self, like: Tensor) -> list[Tensor | None]:
        """Return the first limits of each stage that remembers its limits.

        Args:
            like: gives the device.
        """
        return [self._begin(stage, like) for stage in self.stages]

    def _begin(self, stage: Stage, like: Tensor) -> Tensor | None:
        zeros = like.new_zeros(_limits_of(stage), dtype=torch.float64)
        return stage.policy.threshold.init(zeros, xp).get("limit")

    def decide(
        self,
        parts: Sequence[Squares | None],
        scale: float,
        counted: Tensor,
        limits: Sequence[Tensor | None],
        step: int,
    ) -> Decided:
        """Return the coefficients of one batch.

        Args:
            parts: the squared norms by parameter; None where a parameter took no part.
            scale: what the samples' gradients are to be multiplied by first.
            counted: shape (B,), which samples the memory is to learn from.
            limits: what each stage remembers, from `begin`.
            step: how many steps came before.
        """
        coefs = torch.ones(self.count, len(counted), dtype=torch.float64, device=counted.device)
        moves: list[Tensor | None] = []
        covered: list[int] = []
        bounds: list[Tensor] = []
        for stage, limit in zip(self.stages, limits, strict=True):
            covered += stage.members
            rows = _rows(stage, parts, counted)
            norms = torch.stack([row.values.sqrt() for row in rows]) * scale
            most = torch.stack([upper(row) for row in rows]) * scale
            factors, high, move = _of_stage(stage, norms, most, limit, counted, step)
            coefs[list(stage.members)] = factors.expand(len(stage.members), -1)
            moves.append(move)
            # A parameter that took no part adds nothing to the norm.
            took = [parts[member] is not None for member in stage.members]
            took = took if len(rows) == len(took) else [any(took)]
            bounds += [high[i, 0] for i, each in enumerate(took) if each]
        if any(part is not None and m not in covered for m, part in enumerate(parts)):
            bounds.append(coefs.new_full((), math.inf))
        bound = combine(torch.stack(bounds), 2.0, xp) if bounds else coefs.new_zeros(())
        return Decided(coefs, moves, bound)


def rules_of(policy: AnyPolicy, names: Sequence[str]) -> Rules:
    """Return the rules of a policy that can be about one sample's gradient.

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
    return Rules(tuple(s for s in stages if isinstance(s, Stage) and s.members), len(names))


def _refuse(policy: object) -> None:
    if not isinstance(policy, Policy):
        remedy = "for samples, give one policy, such as by_norm(1.0), or one for each name"
        raise PolicyError.of("policy", policy, remedy)
    measure = policy.measure
    if measure.scope not in ("global", "tensor") or measure.relative is not None:
        remedy = "for samples, give scope='global' or 'tensor', of the gradient of one sample"
        raise PolicyError.of("policy.measure", measure, remedy)
    if measure.order != 2.0:
        raise PolicyError.of("policy.measure.order", measure.order, "for samples, give order=2")
    for part, kinds in (("threshold", _THRESHOLDS), ("response", _RESPONSES)):
        if not isinstance(getattr(policy, part), kinds):
            known = ", ".join(kind.__name__ for kind in kinds)
            remedy = f"for samples, the {part} is one of {known}"
            raise PolicyError.of(f"policy.{part}", getattr(policy, part), remedy)


def _limits_of(stage: Stage) -> int:
    """Return how many limits a stage has: one for each parameter, or one for all."""
    return len(stage.members) if stage.policy.measure.scope == "tensor" else 1


def _rows(stage: Stage, parts: Sequence[Squares | None], counted: Tensor) -> list[Squares]:
    """Return the squared norms that the stage looks at: of each parameter, or of all as one."""
    zeros = torch.zeros(len(counted), dtype=torch.float64, device=counted.device)
    mine = [parts[member] or Squares(zeros, zeros) for member in stage.members]
    return mine if stage.policy.measure.scope == "tensor" else [together(mine)]


def _of_stage(
    stage: Stage,
    norms: Tensor,
    most: Tensor,
    limit: Tensor | None,
    counted: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return factors (rows, B), upper limits (rows, 1 or B), and how the memory moves.

    The threshold learns from the norms; the response gets norms that are not under the exact ones,
    so that what it keeps under a limit stays there.
    """
    policy, batch = stage.policy, norms.shape[1]
    state = {} if limit is None else {"limit": limit.repeat_interleave(batch)}
    found, new = policy.threshold.update(state, norms.flatten(), Context(step=step), xp)
    response = policy.response
    assert isinstance(response, _RESPONSES)
    factors = response.factors(most.flatten(), found, xp).reshape(norms.shape)
    move = None
    if limit is not None:
        # The mean of the moves, which are logarithms, is the move by the share of the samples.
        moves = (new["limit"].reshape(norms.shape) / limit[:, None]).log()
        move = torch.where(counted, moves, 0.0).sum(1)
    return factors, _high(found.high, norms, limit), move


def _high(high: object, norms: Tensor, limit: Tensor | None) -> Tensor:
    """Return the upper limit of each row, shape (rows, 1); inf if there is none."""
    if limit is not None:
        return limit[:, None]
    value = math.inf if high is None else high
    return torch.as_tensor(value, dtype=torch.float64, device=norms.device).expand(len(norms), 1)
