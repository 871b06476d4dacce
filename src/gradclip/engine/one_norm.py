"""The pass for the commonest plans, in plain numbers: one norm of all gradients, one fixed limit.

`run` gives the same numbers for these plans, bit for bit, and a test holds the two together: this
pass exists for its time alone, a fifth of the other's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..arrays import Scalar
from ..method.measure import combine
from ..method.plan import Plan, Stage
from ..method.response import Rescale
from ..method.threshold import Fixed
from .backend import Measured, Reader
from .result import ClipResult

__all__ = ["OneNorm", "one_norm", "plain_factor"]


class OneNorm(NamedTuple):
    """What a plan comes down to: one number, and one limit for it.

    Attributes:
        order: the p of the norm.
        limit: the largest norm that stays as it is; None where nothing is changed.
        eps: what the response adds to the norm.
    """

    order: float
    limit: float | None = None
    eps: float = 0.0

    def clip(self, grads: Reader, *, skips: bool) -> tuple[Scalar, ClipResult]:
        """Return the factor for all gradients, and the result.

        Args:
            grads: the gradients, which are measured on the host; not mutated.
            skips: whether a norm that is not finite changes nothing.
        """
        measured: Measured = grads.measure(self.order)
        total = float(combine(measured.norms, self.order, np))
        finite = math.isfinite(total)
        skipped = skips and not finite
        factor = 1.0
        if self.limit is not None and not skipped:
            factor = plain_factor(total + self.eps, self.limit)
        after = total * factor
        result = ClipResult(
            total_norm=np.float64(total),
            clipped_norm=np.float64(after),
            coef=np.float64(after / total if total > 0 and not skipped else 1.0),
            clipped=np.bool_(factor != 1),
            skipped=np.bool_(skipped),
            removed=np.float64(abs(1 - factor)),
            cosine=np.float64(1.0),
            limit=np.float64(self.limit if finite and self.limit is not None else math.nan),
            norms=measured.norms,
            names=grads.names,
        )
        return np.float64(factor), result


def plain_factor(size: float, limit: float) -> float:
    """Return what `Rescale.factors` gives for one norm and an upper limit; NaN stays NaN."""
    return 1.0 if size <= limit else limit / size


def one_norm(plan: Plan, count: int) -> OneNorm | None:
    """Return what a plan over `count` gradients comes down to, or None.

    None for every other plan: of several stages, of parts of the gradients, of limits that move.
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
    if type(threshold) is not Fixed or type(response) is not Rescale:
        return None
    if threshold.low is not None or not isinstance(threshold.high, float):
        return None
    return OneNorm(measure.order, threshold.high, response.eps)
