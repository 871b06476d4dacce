"""The gradient of a parameter, where the test knows that there is one."""

from __future__ import annotations

from torch import Tensor


def grad_of(parameter: Tensor) -> Tensor:
    """Return the gradient; a parameter without one fails the test."""
    assert parameter.grad is not None, "the parameter has no gradient"
    return parameter.grad
