"""The pass for the commonest plans, in plain numbers: one norm of all gradients, and one limit.

`run` gives the same numbers for these plans, bit for bit, and a test holds the two together: this
pass exists for its time alone, a fifth of the other's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import Flag, Memory, Namespace, Norms, Scalar, State
from ..method.measure import combine
from ..method.plan import Plan, Stage
from ..method.response import FactorResponse, Rescale, Skip, ValueResponse
from ..method.threshold import (
    After,
    Context,
    Fixed,
    Found,
    Limits,
    MeanStd,
    MovingAverage,
    MovingBand,
    NormalisedNorm,
    OnlineQuantile,
    Quantile,
    RollingMean,
    Smallest,
    Threshold,
    WindowZScore,
    ZScore,
)
from .backend import Measured, Reader, writes
from .memory import keep_rows
from .one_number import NUMBER, all_finite, as_arrays, as_numbers
from .result import ClipResult

__all__ = ["Decided", "OneNorm", "one_norm", "plain_factor"]

_OF_NUMBERS = (Found, MeanStd, MovingAverage, MovingBand, NormalisedNorm, OnlineQuantile, ZScore)
"""Rules of this package that treat each norm by itself: without axes, and without a context."""
_OF_ROWS = (Quantile, RollingMean, WindowZScore)
"""Rules that need an array, because they remember a row of norms, and no context."""


class Decided(NamedTuple):
    """What a plan has decided for one step.

    Attributes:
        memory: what the plan remembers after the step.
        factor: what all gradients are to be multiplied by.
        limit: the upper limit; NaN if there is none.
        skipped: whether the step must not reach the weights.
        enlarges: whether the factor may be over 1.
    """

    memory: Memory
    factor: float
    limit: float
    skipped: bool
    enlarges: bool = False

    def result(self, total: float, norms: Norms, names: tuple[str, ...]) -> ClipResult:
        """Return what the step does to gradients of these norms."""
        after = total if self.skipped else total * self.factor
        return ClipResult(
            total_norm=np.float64(total),
            clipped_norm=np.float64(after),
            coef=np.float64(after / total if total > 0 and not self.skipped else 1.0),
            clipped=np.bool_(self.factor != 1 and not self.skipped),
            skipped=np.bool_(self.skipped),
            removed=np.float64(abs(1 - self.factor)),
            cosine=np.float64(1.0),
            limit=np.float64(self.limit if math.isfinite(total) else math.nan),
            norms=norms,
            names=names,
        )


@dataclass(frozen=True)
class OneNorm:
    """What a plan comes down to: one norm, a rule for its limit, and one factor.

    Attributes:
        order: the p of the norm.
        threshold: the rule; None where nothing is changed.
        response: what happens outside of the limits; None where nothing is changed.
        in_numbers: whether the rule does without arrays.
    """

    order: float
    threshold: Threshold | None = None
    response: FactorResponse | None = None
    in_numbers: bool = True

    @property
    def enlarges(self) -> bool:
        """Whether the response alone may give a factor over 1; a lower limit may, too."""
        return self.response is not None and self.response.enlarges

    @property
    def fixed(self) -> tuple[float, float] | None:
        """The limit and the epsilon, if the factor is `plain_factor` of nothing but these."""
        rule, response = self.threshold, self.response
        if rule is None:
            return math.inf, 0.0
        if not isinstance(rule, Fixed) or not isinstance(response, Rescale):
            return None
        high = rule.high
        return (high, response.eps) if rule.low is None and isinstance(high, float) else None

    def clip(
        self, memory: Memory, grads: Reader, *, skips: bool, step: Scalar | int
    ) -> tuple[Memory, Scalar, ClipResult]:
        """Return the new memory, the factor for all gradients, and the result.

        Args:
            memory: from `init` or the last step; not mutated.
            grads: the gradients, which are measured on the host; not mutated.
            skips: whether a norm that is not finite changes nothing.
            step: how many steps came before this one.
        """
        measured: Measured = grads.measure(self.order)
        total = float(combine(measured.norms, self.order, np))
        done = self.decide(total, memory, skips=skips, step=step, there=any(measured.here))
        if done.enlarges and writes(grads):
            grads.saturate()
        return done.memory, np.float64(done.factor), done.result(total, measured.norms, grads.names)

    def decide(
        self,
        total: float,
        memory: Memory,
        *,
        skips: bool,
        step: Scalar | int = 0,
        there: bool = True,
    ) -> Decided:
        """Return the factor for a norm, and what is remembered afterwards.

        Args:
            total: the norm of all gradients.
            memory: from `init` or the last step; not mutated.
            skips: whether a norm that is not finite changes nothing.
            step: how many steps came before this one.
            there: whether there is any gradient at all.
        """
        skipped = skips and not math.isfinite(total)
        if self.threshold is None or self.response is None or skipped:
            return Decided(memory, 1.0, math.nan, skipped)
        state: State = memory[0][0]
        if self.in_numbers:
            norms, xp, old = np.float64(total), NUMBER, as_numbers(state)
        else:
            norms, xp, old = np.asarray([total]), np, state
        limits, new = self.threshold.update(old, norms, Context(step=step), xp)
        sound = there and math.isfinite(total)
        if not (sound and self.in_numbers and all_finite(new)):  # Else nothing is kept.
            new = keep_rows((norms != norms) | (not sound), old, new, xp)
        factor, skipped = self._answer(norms, limits, xp)
        return Decided(
            memory=[[as_arrays(new) if self.in_numbers else new]],
            factor=factor,
            limit=math.nan if limits.high is None else _number(limits.high),
            skipped=skipped,
            enlarges=self.response.enlarges or limits.low is not None,
        )

    def _answer(self, norms: Norms, limits: Limits, xp: Namespace) -> tuple[float, bool]:
        """Return the factor, and whether the step is left out."""
        assert self.response is not None
        skips: Flag = isinstance(self.response, Skip) and self.response.skips(norms, limits, xp)
        return _number(self.response.factors(norms, limits, xp)), bool(skips)


def _number(value: Norms) -> float:
    """Return the one number in an array, or the number itself."""
    return float(value[0] if getattr(value, "shape", ()) else value)


def plain_factor(size: float, limit: float) -> float:
    """Return what `Rescale.factors` gives for one norm and an upper limit; NaN stays NaN."""
    return 1.0 if size <= limit else limit / size


def one_norm(plan: Plan, count: int) -> OneNorm | None:
    """Return what a plan over `count` gradients comes down to, or None.

    None for every other plan: of several stages, of parts of the gradients, of limits that follow
    the step, the loss or the weights.
    """
    if not plan:
        return OneNorm(2.0)
    stages = [stage for layer in plan for stage in layer]
    if len(stages) != 1:
        return None
    stage = stages[0]
    if not isinstance(stage, Stage) or len(stage.members) != count or count == 0:
        return None
    measure, threshold, response = (
        stage.policy.measure,
        stage.policy.threshold,
        stage.policy.response,
    )
    if measure.scope != "global" or isinstance(measure.order, str) or measure.relative is not None:
        return None
    if isinstance(response, ValueResponse) or not _is_alone(threshold):
        return None
    return OneNorm(measure.order, threshold, response, _is_of_numbers(threshold))


def _is_alone(threshold: Threshold) -> bool:
    """Whether a rule looks at its norm and its memory alone, and is one of this package."""
    return _is_of_numbers(threshold) or all(
        type(rule) in _OF_ROWS or _is_of_numbers(rule) for rule in _rules(threshold)
    )


def _is_of_numbers(threshold: Threshold) -> bool:
    """Whether a rule does without arrays."""
    return all(
        type(rule) in _OF_NUMBERS
        or (
            type(rule) is Fixed
            and all(b is None or type(b) is float for b in (rule.low, rule.high))
        )
        for rule in _rules(threshold)
    )


def _rules(threshold: Threshold) -> list[Threshold]:
    """Return the rules that a rule combines, or the rule itself."""
    if type(threshold) is Smallest:
        return _rules(threshold.first) + _rules(threshold.second)
    if type(threshold) is After:
        return _rules(threshold.first) + _rules(threshold.then)
    return [threshold]
