"""Smooth clipping: three bounded maps with slope 1 at zero.

form="sqrt":      g/√(1 + n²/τ²)      one norm n over all parameters
form="rational":  g/(1 + n/τ)         the same
form="tanh":      τ·tanh(g/τ)         element by element

All shrink every gradient, none reaches τ. The first, taken component by component, is that of
Yu, Jakovetić and Kar 2023, arXiv 2310.16920; the second is the smooth step length of Zhang et al.
2020, arXiv 1905.11881; the third one of the nonlinearities of Jakovetić et al. 2022, arXiv
2204.02593 (attributions from memory).
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "smooth:1.0": {},
    "smooth:1.0,linear": {"form": "linear"},
    "tanh:1.0": {"form": "tanh"},
}


class Reference:
    """Stateless."""

    def __init__(self, tau: float = 1.0, form: str = "sqrt") -> None:
        self.tau = tau
        self.form = form

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the shrunk gradients and whether to skip the step."""
        size = norm(grads)
        if not math.isfinite(size):
            return [np.array(g) for g in grads], True
        if self.form == "tanh":
            return [self.tau * np.tanh(g / self.tau) for g in grads], False
        if self.form == "sqrt":
            factor = 1.0 / math.hypot(1.0, size / self.tau)
        else:
            factor = 1.0 / (1.0 + size / self.tau)
        return [g * factor for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
