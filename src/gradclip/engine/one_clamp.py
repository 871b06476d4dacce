"""The pass for a plan that is one clamp of all values to two numbers, in plain numbers.

`run` gives the same numbers, and a test holds the two together: this pass is there for its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Cosines, Norms
from ..method.plan import Plan, Stage
from ..method.response import Clamp
from ..method.threshold import Fixed
from .ledger import Ledger
from .result import ClipResult

__all__ = ["OneClamp", "clamped", "one_clamp"]


@dataclass(frozen=True)
class OneClamp:
    """What a plan comes down to: two bounds for each value of all gradients.

    Attributes:
        low: the lower bound; None for no bound.
        high: the upper bound; None for no bound.
    """

    low: float | None
    high: float | None

    def result(self, norms: Norms, sums: Array, names: tuple[str, ...]) -> ClipResult:
        """Return what the clamp did to gradients of these norms, which are finite.

        Args:
            norms: shape (gradients,), the norms before; not mutated.
            sums: shape (gradients, 3), see `clamped`; not mutated.
            names: the names of the gradients.
        """
        ledger = Ledger.start(norms, 2.0, np).turned_to(*clamped(norms, sums), np)
        return ledger.result(names, self.high, np)


def one_clamp(plan: Plan, count: int) -> OneClamp | None:
    """Return what a plan over `count` gradients comes down to, or None."""
    stages = [stage for layer in plan for stage in layer]
    if len(stages) != 1 or count == 0:
        return None
    stage = stages[0]
    if not isinstance(stage, Stage) or len(stage.members) != count:
        return None
    policy, rule = stage.policy, stage.policy.threshold
    if policy.measure.scope != "element" or type(policy.response) is not Clamp:
        return None
    if type(rule) is not Fixed or not all(b is None or type(b) is float for b in _bounds(rule)):
        return None
    return OneClamp(*_bounds(rule))


def _bounds(rule: Fixed) -> tuple[Array, Array]:
    return rule.low, rule.high


def clamped(norms: Norms, sums: Array) -> tuple[Norms, Cosines]:
    """Return the norms after a clamp, and the cosines between before and after.

    Args:
        norms: shape (gradients,), the norms before; not mutated.
        sums: shape (gradients, 3): Σ before², Σ after² and Σ before·after; not mutated.
    """
    before, after, dot = sums.T
    turned = (dot != before) | (after != before)
    known = turned & (before > 0) & (after > 0)
    share = dot / np.sqrt(np.where(known, before * after, 1.0))
    cosines = np.where(known, np.minimum(share, 1 - 2**-53), 1.0)
    return np.where(turned, np.sqrt(after), norms), cosines
