"""U-Clip: what was cut from one gradient is added to the next.

Elesedy and Hutter 2023, arXiv 2302.02971. With the carry Δ = 0 before the first step:

    u = clip(g + Δ),      Δ ← (g + Δ) − u,      the optimizer takes u

From the paper's abstract, with the formula from memory. clip is by norm (scope="global") or element
by element (scope="element"). The sum of all u plus Δ is the sum of all g. The threshold of 1 is
ours. A non-finite step changes nothing here; `reset=True`, ours too, sets Δ to 0 then.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "feedback(norm:1.0)": {},
}


class Reference:
    """One stream of gradients, always the same tensors in the same order."""

    def __init__(self, threshold: float = 1.0, scope: str = "global", reset: bool = False) -> None:
        self.threshold = threshold
        self.scope = scope
        self.reset = reset
        self.carry: list[np.ndarray] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped sum of gradient and carry, and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            if self.reset:
                self.carry = []
            return [np.array(g) for g in grads], True
        carry = self.carry or [np.zeros(g.shape) for g in grads]
        wanted = [g + c for g, c in zip(grads, carry, strict=True)]
        if self.scope == "element":
            clipped = [np.clip(w, -self.threshold, self.threshold) for w in wanted]
        else:
            size = norm(wanted)
            factor = self.threshold / size if size > self.threshold else 1.0
            clipped = [w * factor for w in wanted]
        self.carry = [w - u for w, u in zip(wanted, clipped, strict=True)]
        return clipped, False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
