"""The pass for a plan that is one norm and one factor of gradients plus what was carried over.

`run` gives the same numbers, and a test holds the two together: this pass is there for its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import Array, Norms
from ..method.plan import Plan, WrappedStage
from ..method.wrapper import Carry
from .ledger import Ledger
from .one_clamp import clamped
from .one_norm import OneNorm, one_norm
from .result import ClipResult

__all__ = ["OneCarry", "one_carry"]


@dataclass(frozen=True)
class OneCarry:
    """What a plan comes down to: a rule for one norm, inside of error feedback.

    Attributes:
        rule: the rule for the norm of the sums.
    """

    rule: OneNorm

    def result(self, norms: Norms, sums: Array, names: tuple[str, ...]) -> ClipResult:
        """Return what was done to gradients of these norms, which are finite.

        Args:
            norms: shape (gradients,), the norms before; not mutated.
            sums: shape (gradients, 3), see `clamped`; not mutated.
            names: the names of the gradients.
        """
        ledger = Ledger.start(norms, 2.0, np).replaced_by(*clamped(norms, sums), np)
        return ledger.result(names, None, np)


def one_carry(plan: Plan, count: int) -> OneCarry | None:
    """Return what a plan over `count` gradients comes down to, or None."""
    stages = [stage for layer in plan for stage in layer]
    stage = stages[0] if len(stages) == 1 else None
    if not isinstance(stage, WrappedStage) or len(stage.members) != count:
        return None
    rule = one_norm(stage.inner, count) if type(stage.source) is Carry else None
    return None if rule is None or rule.order != 2.0 or rule.threshold is None else OneCarry(rule)
