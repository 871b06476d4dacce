"""The reference backend: NumPy arrays, clear before fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from .checks import choice
from .engine.result import ClipResult
from .engine.run import NonFinite, init, run
from .errors import NonFiniteError, PolicyError
from .method.plan import plan
from .method.read import PolicyLike, as_policy, is_written
from .method.threshold import Limits

__all__ = ["clip"]

Grads = TypeVar("Grads", Sequence[Any], Mapping[str, Any])


def clip(
    grads: Grads,
    policy: PolicyLike,
    state: Any = None,
    *,
    weights: Any = None,
    loss: float | None = None,
    nonfinite: NonFinite = "skip",
) -> tuple[Grads, Any, ClipResult]:
    """Clip a list or a dictionary of arrays.

    The formula is the policy's; see `gradclip methods`.

    Args:
        grads: arrays of any float dtype and shape, or None where there is no gradient; the keys
            of a dictionary are the names for rules by name, a list's are "0", "1", …. Not
            mutated.
        policy: a policy, its text form, or rules by name.
        state: what the last call returned; None at the first step. Not mutated.
        weights: the weights, in the same container, for policies that look at them.
        loss: the loss of the step, for policies that look at it.
        nonfinite: "skip" returns the gradients as they are with `result.skipped`; "zero" puts
            0 for each value that is not finite; "raise" raises; "propagate" computes on.

    Returns:
        The clipped gradients in the same container, with the same dtypes (an array that was
        not changed is returned as it is, not copied); the new state; and the result.

    Raises:
        PolicyError: the policy or an argument is wrong, or the state is of other gradients.
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
    named = _named(grads)
    policy = as_policy(policy)
    arrays = _Arrays(named, loss=loss, replace_nonfinite=nonfinite == "zero")
    if weights is not None:
        arrays.weights = _Arrays(_matching(weights, named))
    if nonfinite == "raise":
        _refuse_nonfinite(arrays)
    layers = plan(policy, arrays.names)
    with np.errstate(all="ignore"):
        about = {"policy": str(policy), "names": list(named)}
        if state is None:
            state = {**about, "memory": init(layers, arrays)}
        if not is_written(policy, state["policy"]):
            remedy = f"the state was made for {state['policy']!r}"
            raise PolicyError.of("policy", str(policy), remedy)
        if state["names"] != list(named):
            remedy = f"the state was made for {state['names']!r}"
            raise PolicyError.of("names", list(named), remedy)
        decision: NonFinite = "skip" if nonfinite == "skip" else "propagate"
        memory, factors, result = run(layers, state["memory"], arrays, nonfinite=decision)
        arrays.scale(factors)
    clipped = {name: None if named[name] is None else arrays.values[name] for name in named}
    new = {**about, "memory": memory}
    if isinstance(grads, Mapping):
        return clipped, new, result  # type: ignore[return-value]
    return list(clipped.values()), new, result  # type: ignore[return-value]


class _Arrays:
    """The engine's backend over arrays by name; a missing gradient counts as empty."""

    xp: Any = np
    values_xp: Any = np
    host = True
    spread = False
    path = "numpy"

    def __init__(
        self,
        named: Mapping[str, Any],
        *,
        loss: float | None = None,
        replace_nonfinite: bool = False,
    ) -> None:
        self.names = tuple(named)
        self.loss = loss
        self.weights: _Arrays | None = None
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
        here = [grad is not None for grad in named.values()]
        self.present = self.somewhere = tuple(here)

    def array(self, values: list[float]) -> Any:
        return np.asarray(values)

    def norms(
        self, members: Sequence[int], order: float, relative: tuple[float, float] | None
    ) -> Any:
        found = []
        for i in members:
            array = self._get(i)
            if relative is not None:
                array = array / self._unit(i, relative)
            found.append(_norm(array.ravel(), order))
        return np.asarray(found, dtype=np.float64)

    def unit_norms(
        self, members: Sequence[int], order: float, axis: int | None
    ) -> tuple[Any, Any, list[int]]:
        norms, sizes, counts = [], [], []
        for member in members:
            rows = _rows(self._get(member), axis)
            norms += [_norm(row, order) for row in rows]
            sizes += [float(rows.shape[1])] * len(rows)
            counts.append(len(rows))
        return np.asarray(norms, dtype=np.float64), np.asarray(sizes), counts

    def unit_dots(self, a: Any, b: Any, counts: list[int], *, root: bool = False) -> Any:
        owners = np.repeat(np.arange(len(counts)), counts)
        sums = np.bincount(owners, a * b, len(counts))
        return np.sqrt(sums) if root else sums

    def scale(self, factors: Any) -> None:
        each = np.broadcast_to(factors, (len(self.names),))
        for name, factor in zip(self.names, each, strict=True):
            if factor != 1:
                self.values[name] = _times(self.values[name], factor)

    def scale_units(self, members: Sequence[int], factors: Any, axis: int | None) -> None:
        counts = [len(_rows(self._get(m), axis)) for m in members]
        for member, mine in zip(members, np.split(factors, np.cumsum(counts)[:-1]), strict=True):
            array = self._get(member)
            if np.any(mine != 1):
                shape = [1] * array.ndim
                if array.ndim > 1:
                    shape[axis or 0] = -1
                self.values[self.names[member]] = _times(array, np.reshape(mine, shape))

    def whole(self, members: Sequence[int], norms: Any, cosines: Any) -> tuple[Any, Any]:  # noqa: ARG002
        return norms, cosines

    def clamp(self, members: Sequence[int], limits: Limits, norms: Any, keep: Any) -> Any:  # noqa: ARG002
        return None

    def refuse_complex(self, members: Sequence[int]) -> None:
        for member in members:
            dtype = self._get(member).dtype
            if dtype.kind == "c":
                remedy = "values of complex gradients have no order: clip them by norm"
                raise PolicyError.of(f"grads[{self.names[member]}].dtype", str(dtype), remedy)

    def get(self, member: int) -> np.ndarray:
        self.refuse_complex([member])
        array = self._get(member)
        return array if array.dtype.itemsize >= 4 else array.astype(np.float32)

    def put(self, member: int, value: Any, keep: Any, *, like: Any = None) -> tuple[Any, Any]:
        old = self._get(member)
        before = old if like is None else np.asarray(like).astype(old.dtype)
        new = old if keep else _stored(np.asarray(value), old.dtype)
        self.values[self.names[member]] = new
        return np.float64(_norm(new.ravel(), 2.0)), np.float64(_cosine(before, new))

    def singular(self, member: int) -> tuple[Any, Any, Any] | None:
        array = self.get(member)
        if array.ndim < 2:
            return None
        matrix = array.reshape(array.shape[0], math.prod(array.shape[1:]))
        if not np.isfinite(matrix).all():  # A decomposition would raise; NaN is what it means.
            matrix = np.full_like(matrix, np.nan)
            rank = min(matrix.shape)
            return matrix[:, :rank], matrix[0, :1].repeat(rank), matrix[:rank]
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        return u, s, vh

    def _get(self, member: int) -> np.ndarray:
        return self.values[self.names[member]]

    def _unit(self, member: int, relative: tuple[float, float]) -> np.ndarray:
        if self.weights is None:
            raise PolicyError.of("weights", None, "the policy compares with them: pass them too")
        rel, least = relative
        return rel * np.abs(self.weights._get(member)).astype(np.float64) + least


def _named(grads: Any) -> dict[str, Any]:
    return dict(grads) if isinstance(grads, Mapping) else {str(i): g for i, g in enumerate(grads)}


def _matching(weights: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights, in the order of the gradients; none where there is no gradient."""
    given = _named(weights)
    if given.keys() != named.keys():
        raise PolicyError.of("weights", list(given), f"the gradients are {list(named)}")
    for name, grad in named.items():
        if grad is not None and np.shape(grad) != np.shape(given[name]):
            remedy = f"the gradient's shape is {np.shape(grad)}"
            raise PolicyError.of(f"weights[{name}].shape", np.shape(given[name]), remedy)
    return {name: None if named[name] is None else given[name] for name in named}


def _rows(array: np.ndarray, axis: int | None) -> np.ndarray:
    """Return the units as rows, shape (units, values in each); a vector is one unit."""
    if array.ndim < 2:
        return array.reshape(1, -1)
    rows = np.moveaxis(array, axis or 0, 0)
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))


def _norm(flat: np.ndarray, order: float) -> float:
    """Return the p-norm of a vector in float64, scaled by its largest magnitude."""
    kind = np.complex128 if flat.dtype.kind == "c" else np.float64
    wide = np.abs(flat.astype(kind))
    largest = float(wide.max()) if wide.size else 0.0
    if math.isinf(order) or largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((wide / largest) ** order)) ** (1.0 / order)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine between two arrays; 1 where they are equal or one is zero."""
    if np.array_equal(a, b):
        return 1.0
    norms = _norm(a.ravel(), 2.0), _norm(b.ravel(), 2.0)
    if not all(norms):
        return 1.0
    wide = np.float64  # Not the half of `b`.
    share = float(np.sum((a.astype(wide) / norms[0]) * (b.astype(wide) / norms[1])))
    return min(share, 1 - 2**-53)  # 1 would mean that they are equal, whatever rounding says.


def _times(array: np.ndarray, factor: Any) -> np.ndarray:
    """Return array·factor, computed in at least float64 and rounded once; 1 keeps the bits."""
    kind = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.where(factor == 1, array, (array.astype(kind) * factor).astype(array.dtype))


def _stored(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new = value.astype(dtype)
    over = np.isfinite(value) & ~np.isfinite(new)
    most = np.nextafter(np.asarray(np.inf, dtype), np.zeros((), dtype))
    return np.where(over, np.copysign(most, new), new)


def _refuse_nonfinite(arrays: _Arrays) -> None:
    bad = [name for name, array in arrays.values.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"the gradients of {', '.join(bad)} hold inf or NaN; nothing changed")
