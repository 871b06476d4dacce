"""AGC: clip each unit's gradient relative to that unit's weights.

Brock et al. 2021, arXiv 2102.06171. For each unit, with G its gradient and W its weights:

    G ← G·λ·max(‖W‖, ε)/‖G‖   if ‖G‖ > λ·max(‖W‖, ε),   else G

λ = 0.01, ε = 1e-3. A unit is what feeds one output: in torch's layout (out, …) one index of axis
0, in JAX's (…, out) one index of the last axis; `unit_axis` says which. A scalar or a vector is one
unit. The authors' JAX code also takes a tensor as one unit if it is a vector once axes of length
1 are dropped (`squeeze=True`), reduces only axis 0 of a rank-3 tensor, and divides by
max(‖G‖, 1e-6), which never matters at the defaults. The paper leaves the last layer out.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "agc": {},
}


class Reference:
    """Stateless; needs the weights."""

    def __init__(
        self,
        clip: float = 0.01,
        eps: float = 1e-3,
        unit_axis: int = 0,
        squeeze: bool = False,
        min_grad_norm: float = 0.0,
    ) -> None:
        self.clip = clip
        self.eps = eps
        self.unit_axis = unit_axis
        self.squeeze = squeeze
        self.min_grad_norm = min_grad_norm

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if weights is None:
            raise TypeError("AGC needs the weights")
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        return [self.tensor(g, w) for g, w in zip(grads, weights, strict=True)], False

    def tensor(self, grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return one tensor's gradient, clipped unit by unit."""
        rank = np.squeeze(grad).ndim if self.squeeze else grad.ndim
        if rank <= 1:
            return self.unit(grad, weight)
        clipped = np.empty(grad.shape)
        for index in range(grad.shape[self.unit_axis]):
            place: list[int | slice] = [slice(None)] * grad.ndim
            place[self.unit_axis] = index
            clipped[tuple(place)] = self.unit(grad[tuple(place)], weight[tuple(place)])
        return clipped

    def unit(self, grad: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return one unit's gradient, clipped."""
        size = norm([grad])
        limit = self.clip * max(norm([weight]), self.eps)
        if size > limit:
            return grad * (limit / max(size, self.min_grad_norm))
        return np.array(grad, dtype=np.float64)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
