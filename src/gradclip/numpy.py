"""The reference backend: NumPy arrays, clear before fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from .checks import choice
from .engine import NonFinite, run
from .errors import NonFiniteError, PolicyError
from .policy import as_policy, plan
from .result import ClipResult
from .threshold import Limits

__all__ = ["clip"]

Grads = TypeVar("Grads", Sequence[Any], Mapping[str, Any])


def clip(
    grads: Grads,
    policy: object,
    state: list[Any] | None = None,
    *,
    nonfinite: NonFinite = "skip",
) -> tuple[Grads, list[Any], ClipResult]:
    """Clip a list or a dictionary of arrays.

    The formula is the policy's; see `gradclip methods`.

    Args:
        grads: arrays of any float dtype and shape, or None where there is no gradient; the keys
            of a dictionary are the names for rules by name, a list's are "0", "1", …. Not
            mutated.
        policy: a policy, its text form, or rules by name.
        state: what the last call returned; None at the first step. Not mutated.
        nonfinite: "skip" returns the gradients as they are with `result.skipped`; "zero" puts
            0 for each value that is not finite; "raise" raises; "propagate" computes on.

    Returns:
        The clipped gradients in the same container, with the same dtypes (an array that was
        not changed is returned as it is, not copied); the new state; and the result.

    Raises:
        PolicyError: the policy or an argument is wrong.
        NonFiniteError: a gradient is not finite and nonfinite="raise".

    Numerics: norms accumulate in float64 and are safe from overflow; a gradient at or under
    the limit keeps its bits.

    Example:
        >>> import numpy as np
        >>> clipped, state, result = clip([np.asarray([3.0, 4.0])], "norm:1.0")
        >>> clipped[0].round(3), float(result.total_norm)
        (array([0.6, 0.8]), 5.0)

    Source: none; this is the clear twin of the faster backends.
    """
    choice("nonfinite", nonfinite, ("skip", "zero", "raise", "propagate"))
    named = dict(grads) if isinstance(grads, Mapping) else {str(i): g for i, g in enumerate(grads)}
    layers = plan(as_policy(policy), list(named))
    arrays = _Arrays(named, replace_nonfinite=nonfinite == "zero")
    if nonfinite == "raise":
        _refuse_nonfinite(arrays)
    with np.errstate(all="ignore"):
        decision: NonFinite = "skip" if nonfinite == "skip" else "propagate"
        new_state, factors, result = run(layers, state, arrays, nonfinite=decision)
        arrays.scale(factors)
    clipped = {name: None if named[name] is None else arrays.values[name] for name in named}
    if isinstance(grads, Mapping):
        return clipped, new_state, result  # type: ignore[return-value]
    return list(clipped.values()), new_state, result  # type: ignore[return-value]


class _Arrays:
    """The engine's backend over arrays by name; a missing gradient counts as empty."""

    xp: Any = np
    host = True
    path = "numpy"

    def __init__(self, named: Mapping[str, Any], *, replace_nonfinite: bool) -> None:
        self.names = tuple(named)
        self.values: dict[str, np.ndarray] = {}
        for name, grad in named.items():
            array = np.zeros(0) if grad is None else np.asarray(grad)
            if array.dtype.kind not in "fcV":
                remedy = "a gradient is an array of floats"
                raise PolicyError.of(f"grads[{name}].dtype", str(array.dtype), remedy)
            if replace_nonfinite and not np.isfinite(array).all():
                array = np.where(np.isfinite(array), array, np.zeros((), array.dtype))
            self.values[name] = array
        self.sizes = np.asarray([a.size for a in self.values.values()], dtype=np.float64)

    def norms(self, members: Sequence[int], order: float) -> Any:
        return np.asarray([_norm(self._get(i).ravel(), order) for i in members], dtype=np.float64)

    def unit_norms(self, member: int, order: Any, axis: int | None) -> Any:
        array = np.atleast_1d(self._get(member))
        rows = [unit.ravel() for unit in np.moveaxis(array, axis or 0, 0)]
        power = 2.0 if order == "rms" else order
        norms = np.asarray([_norm(row, power) for row in rows], dtype=np.float64)
        return (
            norms / math.sqrt(max(array.size // max(len(rows), 1), 1)) if order == "rms" else norms
        )

    def scale(self, factors: Any) -> None:
        each = np.broadcast_to(factors, (len(self.names),))
        for name, factor in zip(self.names, each, strict=True):
            if factor != 1:
                self.values[name] = _times(self.values[name], factor)

    def scale_units(self, member: int, factors: Any, axis: int | None) -> None:
        array = self._get(member)
        if array.ndim and np.any(factors != 1):
            shape = [-1 if d == (axis or 0) else 1 for d in range(array.ndim)]
            factors = np.reshape(factors, shape)
        elif array.ndim == 0:
            factors = factors[0]
        if np.any(factors != 1):
            self.values[self.names[member]] = _times(array, factors)

    def map(
        self, members: Sequence[int], norms: Any, response: Any, limits: Limits, keep: Any
    ) -> tuple[Any, Any]:
        after, cosine = np.zeros_like(norms), np.ones_like(norms)
        for position, member in enumerate(members):
            old = self._get(member)
            if old.dtype.kind == "c":
                remedy = "values of complex gradients have no order: clip them by norm"
                raise PolicyError.of(f"grads[{self.names[member]}].dtype", str(old.dtype), remedy)
            new = old if keep else response.values(old, limits, np).astype(old.dtype)
            after[position] = _norm(new.ravel(), 2.0)
            before = norms[position]
            if (new != old).any() and before > 0 and after[position] > 0:
                a, b = old.astype(np.float64) / before, new.astype(np.float64) / after[position]
                # Under 1 even where rounding says 1, since that would mean that nothing changed.
                cosine[position] = min(float(np.sum(a * b)), 1 - 2**-53)
            if (new != old).any():
                self.values[self.names[member]] = new
        return after, cosine

    def _get(self, member: int) -> np.ndarray:
        return self.values[self.names[member]]


def _norm(flat: np.ndarray, order: float) -> float:
    """Return the p-norm of a vector in float64, scaled by its largest magnitude."""
    wide = np.abs(flat.astype(np.complex128 if flat.dtype.kind == "c" else np.float64))
    largest = float(wide.max()) if wide.size else 0.0
    if math.isinf(order) or largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((wide / largest) ** order)) ** (1.0 / order)


def _times(array: np.ndarray, factor: Any) -> np.ndarray:
    """Return array·factor, computed in float64 and rounded once."""
    kind = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.asarray(array.astype(kind) * factor, array.dtype)


def _refuse_nonfinite(arrays: _Arrays) -> None:
    bad = [name for name, array in arrays.values.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"the gradients of {', '.join(bad)} hold inf or NaN; nothing changed")
