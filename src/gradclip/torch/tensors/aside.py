"""Changes that are made on copies, so that an exception on the way leaves the gradients alone."""

from __future__ import annotations

from collections.abc import Sequence

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...method.plan import Plan, Stage
from ...method.response import Clamp, ValueResponse

__all__ = ["Aside", "is_one_clamp", "writes_often"]


class Aside:
    """Copies of tensors, to be changed and then put in place by one call of torch.

    Args:
        tensors: not changed until `put_in_place`.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._originals = list(tensors)
        self.copies: list[Tensor] = [tensor.clone() for tensor in tensors]

    def put_in_place(self) -> None:
        """Store what the copies hold: all, or after an interrupt nothing."""
        if any(map(Tensor.is_neg, self._originals)):  # Which torch copies one by one only.
            for original, copy in zip(self._originals, self.copies, strict=True):
                original.copy_(copy)
        elif self._originals:
            torch._foreach_copy_(self._originals, self.copies)  # pyright: ignore[reportPrivateImportUsage]


def writes_often(plan: Plan) -> bool:
    """Whether a plan changes gradients in several writes, and not by factors at the end."""
    stages = [stage for layer in plan for stage in layer]
    return any(not isinstance(s, Stage) or _changes_values(s) for s in stages)


def is_one_clamp(plan: Plan) -> bool:
    """Whether a plan is one clamp of values to fixed limits, which the C kernel does in one go."""
    stages = [stage for layer in plan for stage in layer]
    one = stages[0] if len(stages) == 1 else None
    if not isinstance(one, Stage) or not isinstance(one.policy.response, Clamp):
        return False
    return not one.policy.threshold.init(torch.zeros(1), torch_xp)


def _changes_values(stage: Stage) -> bool:
    policy = stage.policy
    by_value = policy.measure.scope in ("element", "singular")
    return by_value or isinstance(policy.response, ValueResponse)
