"""A policy about one gradient, applied to the gradient of each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from ...engine.sample_edits import Edited, edited, written_stages
from ...engine.samples import EPS, WRITTEN, Squares, factors_of, rows_of, stages_of
from ...method.measure import combine
from ...method.plan import Stage
from ...method.policy import AnyPolicy
from .forms import Form

__all__ = ["Decided", "Rules", "rules_of", "together"]


class Decided(NamedTuple):
    """What the rules make of the samples of one batch.

    Attributes:
        coefs: shape (parameters, B), what each parameter's gradient of each sample is multiplied
            by.
        moves: for each stage, how the logarithm of its limits moves, summed over the samples:
            shape (limits,); None of a stage that remembers nothing.
        bounds: each of shape (), what the norms of the parts of each sample are at most, after
            this.
        limits: the parameters that have a norm in common, and what a sample's is at most.
    """

    coefs: Tensor
    moves: list[Tensor | None]
    bounds: list[Tensor]
    limits: list[tuple[tuple[int, ...], Tensor]]


@dataclass(frozen=True)
class Rules:
    """The stages of a policy, each over some of the parameters; no two share a parameter.

    Attributes:
        stages: from `plan`.
        names: of all parameters.
        written: the stages that need the gradients of a parameter written out, by its index.
    """

    stages: tuple[Stage, ...]
    names: tuple[str, ...]
    written: dict[int, Stage]

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
        shape = len(self.names), len(counted)
        coefs = torch.ones(shape, dtype=torch.float64, device=counted.device)
        moves: list[Tensor | None] = []
        covered: list[int] = []
        bounds: list[Tensor] = []
        most: list[tuple[tuple[int, ...], Tensor]] = []
        for stage, limit in zip(self.stages, limits, strict=True):
            covered += stage.members
            if stage.policy.measure.scope in WRITTEN:
                moves.append(None)
                continue
            rows = _rows(stage, parts, counted)
            factors, high, move = _of_stage(stage, rows, scale, limit, counted, step)
            coefs[list(stage.members)] = factors.expand(len(stage.members), -1)
            moves.append(move)
            one = len(rows) == 1
            groups = [stage.members] if one else [(member,) for member in stage.members]
            most += [(group, high[i, 0]) for i, group in enumerate(groups)]
            # Of a parameter that took no part as well: which ones do may depend on the samples.
            bounds += [high[i, 0] for i in range(len(rows))]
        if any(part is not None and m not in covered for m, part in enumerate(parts)):
            bounds.append(coefs.new_full((), math.inf))
        return Decided(coefs, moves, bounds, most)

    def edit(self, place: int, form: Form, scale: float, parameter: Tensor, step: int) -> Edited:
        """Return the clipped gradients of one parameter of `written`.

        Args:
            place: the parameter's index.
            form: its gradients, which are written out here.
            scale: what the gradients are to be multiplied by first.
            parameter: itself.
            step: how many steps came before.
        """
        whole = form.part(slice(0, form.batch))  # In float64.
        weights = parameter.detach().double
        stage, name = self.written[place], self.names[place]
        return edited(stage, name, whole.rows() * scale, xp, weights=weights, step=step)


def together(bounds: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Return what the norm of a sample is at most, rounded up, from the bounds of its parts.

    Args:
        bounds: of the parts.
        like: gives the dtype and the device.
    """
    if not bounds:
        return like.new_zeros(())
    kind = {"dtype": like.dtype, "device": like.device}
    parts = torch.stack([torch.as_tensor(each, **kind) for each in bounds])
    return combine(parts, 2.0, xp) * (1 + (len(bounds) + 8) * EPS if len(bounds) > 1 else 1)


def rules_of(policy: AnyPolicy, names: Sequence[str]) -> Rules:
    """Return the rules of a policy that can be about one sample's gradient.

    Args:
        policy: one policy, or policies by the parameters' names.
        names: the names of all parameters that are trained.

    Raises:
        PolicyError: the policy is a chain or has a wrapper, or a part of it does not go with
            samples; says which would.
    """
    stages = stages_of(policy, names)
    return Rules(stages, tuple(names), written_stages(stages))


def _limits_of(stage: Stage) -> int:
    """Return how many limits a stage has: one for each parameter, or one for all."""
    return len(stage.members) if stage.policy.measure.scope == "tensor" else 1


def _rows(stage: Stage, parts: Sequence[Squares | None], counted: Tensor) -> list[Squares]:
    """Return the squared norms that the stage looks at; a part that is missing counts as 0."""
    zeros = torch.zeros(len(counted), dtype=torch.float64, device=counted.device)
    mine = [parts[member] or Squares(zeros, zeros) for member in stage.members]
    return rows_of(stage, mine, xp)


def _of_stage(
    stage: Stage,
    rows: Sequence[Squares],
    scale: float,
    limit: Tensor | None,
    counted: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return factors (rows, B), upper limits (rows, 1 or B), and how the memory moves."""
    state = {} if limit is None else {"limit": limit.repeat_interleave(len(counted))}
    factors, found, new = factors_of(stage, rows, scale, state, step, xp)
    move = None
    if limit is not None:
        # The mean of the moves, which are logarithms, is the move by the share of the samples.
        moves = (new["limit"].reshape(factors.shape) / limit[:, None]).log()
        move = torch.where(counted, moves, 0.0).sum(1)
    return factors, _high(found.high, factors, limit), move


def _high(high: object, factors: Tensor, limit: Tensor | None) -> Tensor:
    """Return the upper limit of each row, shape (rows, 1); inf if there is none."""
    if limit is not None:
        return limit[:, None]
    value = math.inf if high is None else high
    return torch.as_tensor(value, dtype=torch.float64, device=factors.device).expand(
        len(factors), 1
    )
