"""The reference backend: NumPy arrays, clear before fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from .arrays import Array, Cosines, Factors, Flag, Namespace, Norms, Sizes, State, Values
from .checks import choice, integer
from .engine.backend import Change, Measured, Relative, Spectrum, Units
from .engine.result import ClipResult
from .engine.run import NonFinite, init, run
from .engine.sample_pass import SampleResult
from .engine.saved import refuse_other_keys, sound_memory
from .errors import NonFiniteError, PolicyError
from .method.axes import Axis, unit_axes, unit_shape
from .method.plan import Plan, WrappedStage, plan
from .method.policy import AnyPolicy
from .method.read import PolicyLike, as_policy, is_written
from .numpy_samples import per_sample

__all__ = ["SampleResult", "clip", "per_sample"]

Grads = TypeVar("Grads", Sequence[Values], Mapping[str, Values])
Shapes = dict[str, tuple[int, ...] | None]
"""The shape of each gradient by name; None where no step had the gradient, nor its weight."""


def clip(
    grads: Grads,
    policy: PolicyLike,
    state: State | None = None,
    *,
    weights: Grads | None = None,
    loss: float | None = None,
    nonfinite: NonFinite = "skip",
) -> tuple[Grads, State, ClipResult]:
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
        PolicyError: the policy or an argument is wrong, or the state is of other gradients, or is
            none that this policy could have left.
        NonFiniteError: a gradient is not finite and nonfinite="raise".

    Numerics: norms accumulate in float64 and are safe from overflow; a gradient at or under
    the limit keeps its bits.

    Example:
        >>> import numpy as np
        >>> clipped, state, result = clip([np.asarray([3.0, 4.0])], "norm:1.0")
        >>> clipped[0].round(3), float(result.total_norm)
        (array([0.6, 0.8]), 5.0)
    """
    choice("nonfinite", nonfinite, ("skip", "zero", "raise", "propagate"))
    named = _named(grads)
    policy = as_policy(policy)
    if state is not None:
        _refuse_other_state(state, policy, list(named))
    step = 0 if state is None else integer("state.steps", state.get("steps", 0), low=0)
    shapes = _shapes(named, weights, {} if state is None else state.get("shapes", {}))
    arrays = _Arrays(named, shapes, replace_nonfinite=nonfinite == "zero")
    known = None if weights is None else _Arrays(_matching(weights, named), shapes)
    if nonfinite == "raise":
        _refuse_nonfinite(arrays)
    layers = plan(policy, arrays.names)
    with np.errstate(all="ignore"):
        about = {"policy": str(policy), "names": list(named)}
        before = init(layers, arrays)
        if state is not None:
            _refuse_late_units(layers, state.get("shapes", shapes), shapes)
            before = sound_memory(layers, state["memory"], before, np, _sound_array)
        decision: NonFinite = "skip" if nonfinite == "skip" else "propagate"
        memory, factors, result = run(
            layers,
            before,
            arrays,
            nonfinite=decision,
            step=step,
            loss=lambda: None if loss is None else np.float64(np.reshape(loss, ())),
            weights=None if known is None else lambda: known,
        )
        arrays.scale(factors)
    result = replace(result, ran="numpy")
    clipped = {name: None if named[name] is None else arrays.values[name] for name in named}
    new = {**about, "shapes": shapes, "steps": step + 1, "memory": memory}
    if isinstance(grads, Mapping):
        return clipped, new, result  # type: ignore[return-value]
    return list(clipped.values()), new, result  # type: ignore[return-value]


def _refuse_other_state(state: object, policy: AnyPolicy, names: list[str]) -> None:
    """Refuse a state that was made for another policy or for other gradients."""
    newer = ("shapes", "steps")  # Older states have none.
    there = [key for key in newer if isinstance(state, Mapping) and key in state]
    refuse_other_keys("state", state, ("policy", "names", *there, "memory"))
    assert isinstance(state, Mapping)
    written, found = state["policy"], state["names"]
    if not isinstance(written, str) or not is_written(policy, written):
        raise PolicyError.of("policy", str(policy), f"the state was made for {written!r}")
    same = isinstance(found, list) and list(map(type, found)) == list(map(type, names))
    if not same or found != names:
        raise PolicyError.of("names", names, f"the state was made for {found!r}")
    shapes = state.get("shapes", {})
    if not isinstance(shapes, Mapping) or not set(shapes) <= set(names):
        raise PolicyError.of("state.shapes", shapes, "give the shape of each gradient by name")
    if not all(shape is None or isinstance(shape, tuple) for shape in shapes.values()):
        raise PolicyError.of("state.shapes", shapes, "a shape is a tuple of whole numbers, or None")


def _sound_array(where: str, value: object, like: Array, _member: int | None) -> Array:
    """Return an entry of a state, if this is an array of floats like another."""
    floats = (np.dtype(np.float32), np.dtype(np.float64), like.dtype)
    if not isinstance(value, np.ndarray) or value.dtype not in floats:
        raise PolicyError.of(where, value, f"give an array of {like.dtype}, as it was returned")
    if value.shape != like.shape:
        raise PolicyError.of(where, value.shape, f"its shape is {like.shape} here")
    return value.astype(like.dtype, copy=False)


class _Arrays:
    """The engine's backend over arrays by name; a missing gradient counts as empty."""

    xp: Namespace = np
    values_xp: Namespace = np
    host = True

    def __init__(
        self, named: Mapping[str, Values], shapes: Shapes, *, replace_nonfinite: bool = False
    ) -> None:
        self.names = tuple(named)
        self._shapes = shapes
        self.values: dict[str, np.ndarray] = {}
        for name, grad in named.items():
            array = np.zeros(0) if grad is None else np.asarray(grad)
            if array.dtype.kind not in "fcV":
                remedy = "a gradient is an array of floats"
                raise PolicyError.of(f"grads[{name}].dtype", str(array.dtype), remedy)
            if replace_nonfinite and not np.isfinite(array).all():
                array = np.where(np.isfinite(array), array, np.zeros((), array.dtype))
            self.values[name] = array
        self.sizes: Sizes = np.asarray([a.size for a in self.values.values()], dtype=np.float64)
        self._present = tuple(grad is not None for grad in named.values())

    def measure(self, order: float) -> Measured:
        return Measured(self.norms(range(len(self.names)), order), self._present)

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Norms:
        found = []
        for i in members:
            array = self._get(i)
            if relative is not None:
                assert isinstance(relative.weights, _Arrays)
                weight = np.abs(relative.weights._get(i)).astype(np.float64)
                array = array / (relative.rel * weight + relative.least)
            found.append(_norm(array.ravel(), order))
        return np.asarray(found, dtype=np.float64)

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        norms, sizes, counts = [], [], []
        for member in members:
            rows = self._rows(member, axis)
            norms += [_norm(row, order) for row in rows]
            sizes += [float(rows.shape[1])] * len(rows)
            counts.append(len(rows))
        found = np.asarray(norms, dtype=np.float64)
        return Units(found, np.asarray(sizes), counts, self._present)

    def take(self, values: Norms, places: Sequence[int]) -> Norms:
        return values[list(places)]

    def spread(self, values: Norms, counts: list[int]) -> Norms:
        return np.repeat(values, counts)

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        owners = np.repeat(np.arange(len(counts)), counts)
        sums = np.bincount(owners, a * b, len(counts))
        return np.sqrt(sums) if root else sums

    def scale(self, factors: Factors) -> None:
        each = np.broadcast_to(factors, (len(self.names),))
        for name, factor in zip(self.names, each, strict=True):
            if factor != 1:
                self.values[name] = _times(self.values[name], factor)

    def scale_units(self, members: Sequence[int], factors: Factors, axis: Axis) -> None:
        counts = [len(self._rows(m, axis)) for m in members]
        for member, mine in zip(members, np.split(factors, np.cumsum(counts)[:-1]), strict=True):
            array = self._get(member)
            if self._present[member] and np.any(mine != 1):
                name = self.names[member]
                shape, _ = unit_shape(array.shape, unit_axes(axis, array.ndim, name))
                self.values[name] = _times(array, np.reshape(mine, shape))

    def saturate(self) -> None:
        """Do nothing: `_times` keeps what is finite."""

    def edit(
        self,
        members: Sequence[int],
        change: Change,
        keep: Flag,
        like: Mapping[int, Values] | None = None,
        *,
        measured: bool = True,
    ) -> tuple[Norms, Cosines]:
        self._refuse_complex(members)
        norms, cosines = np.zeros(len(members)), np.ones(len(members))
        for place, member in enumerate(members):
            if not self._present[member]:
                continue
            old = self._get(member)
            value = old if old.dtype.itemsize >= 4 else old.astype(np.float32)
            changed = change(member, value, partial(_decomposed, value))
            if changed is None:
                continue
            new = old if keep else _stored(np.asarray(changed), old.dtype)
            self.values[self.names[member]] = new
            if measured:
                before = old if like is None else np.asarray(like[member]).astype(old.dtype)
                norms[place], cosines[place] = _norm(new.ravel(), 2.0), _cosine(before, new)
        return norms, cosines

    def _refuse_complex(self, members: Sequence[int]) -> None:
        for member in members:
            dtype = self._get(member).dtype
            if dtype.kind == "c":
                remedy = "values of complex gradients have no order: clip them by norm"
                raise PolicyError.of(f"grads[{self.names[member]}].dtype", str(dtype), remedy)

    def _rows(self, member: int, axis: Axis) -> np.ndarray:
        """Return the units as rows; a missing gradient has as many, without a value."""
        name = self.names[member]
        shape = self._shapes[name]
        if self._present[member] or shape is None:
            return _rows(self.values[name], axis, name)
        return np.zeros((len(_rows(np.empty(shape), axis, name)), 0))

    def _get(self, member: int) -> np.ndarray:
        return self.values[self.names[member]]


def _decomposed(value: np.ndarray) -> Spectrum | None:
    """Return U, σ, Vᵀ of a matrix, its filters flattened; None for a vector."""
    if value.ndim < 2:
        return None
    matrix = value.reshape(value.shape[0], math.prod(value.shape[1:]))
    if not np.isfinite(matrix).all():  # A decomposition would raise; NaN is what it means.
        matrix = np.full_like(matrix, np.nan)
        rank = min(matrix.shape)
        return matrix[:, :rank], matrix[0, :1].repeat(rank), matrix[:rank]
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def _named(grads: Sequence[Values] | Mapping[str, Values]) -> dict[str, Values]:
    return dict(grads) if isinstance(grads, Mapping) else {str(i): g for i, g in enumerate(grads)}


def _matching(
    weights: Sequence[Values] | Mapping[str, Values], named: Mapping[str, Values]
) -> dict[str, Values]:
    """Return the weights, in the order of the gradients; none where there is no gradient."""
    given = _named(weights)
    if given.keys() != named.keys():
        raise PolicyError.of("weights", list(given), f"the gradients are {list(named)}")
    for name, grad in named.items():
        if grad is not None and np.shape(grad) != np.shape(given[name]):
            remedy = f"the gradient's shape is {np.shape(grad)}"
            raise PolicyError.of(f"weights[{name}].shape", np.shape(given[name]), remedy)
    return {name: None if named[name] is None else given[name] for name in named}


def _shapes(
    named: Mapping[str, Values],
    weights: Sequence[Values] | Mapping[str, Values] | None,
    before: Shapes,
) -> Shapes:
    """Return the gradients' shapes, those of missing ones from the weights or an earlier step."""
    known = {} if weights is None else _named(weights)
    shapes: Shapes = {}
    for name, grad in named.items():
        old = before.get(name)
        like = known.get(name) if grad is None else grad
        shapes[name] = old if like is None else np.shape(like)
        if old is not None and shapes[name] != old:
            remedy = f"it was {old} in an earlier step"
            raise PolicyError.of(f"grads[{name}].shape", shapes[name], remedy)
    return shapes


def _refuse_late_units(layers: Plan, before: Shapes, shapes: Shapes) -> None:
    """Refuse a gradient whose units the memory does not know, since its shape was not known."""
    names = list(shapes)
    late = [n for n, shape in shapes.items() if before.get(n) is None and len(shape or ()) > 1]
    stages = [stage for layer in layers for stage in layer]
    for stage in stages:
        if isinstance(stage, WrappedStage):
            _refuse_late_units(stage.inner, before, shapes)
        elif stage.policy.measure.scope == "unit" and stage.policy.threshold.init(np.ones(1), np):
            for name in (names[m] for m in stage.members if names[m] in late):
                remedy = "the first step did not have it: give zeros or its weight there"
                raise PolicyError.of(f"grads[{name}]", "a late gradient", remedy)


def _rows(array: np.ndarray, axis: Axis, name: str) -> np.ndarray:
    """Return the units as rows, shape (units, values in each); a vector is one unit."""
    axes = unit_axes(axis, array.ndim, name)
    rows = np.moveaxis(array, axes, range(len(axes)))
    count = math.prod(rows.shape[: len(axes)])
    return rows.reshape(count, math.prod(rows.shape[len(axes) :]))


def _norm(flat: np.ndarray, order: float) -> float:
    """Return the p-norm of a vector in float64, scaled by its largest magnitude."""
    kind = np.complex128 if flat.dtype.kind == "c" else np.float64
    wide = np.abs(flat.astype(kind))
    largest = float(wide.max()) if wide.size else 0.0
    if math.isinf(order) or largest == 0 or not math.isfinite(largest):
        return largest
    # NumPy's power, not Python's: for a tiny p the norm itself is beyond float64, and so inf.
    return largest * float(np.sum((wide / largest) ** order) ** (1.0 / order))


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


def _times(array: np.ndarray, factor: Factors) -> np.ndarray:
    """Return array·factor, computed in at least float64 and rounded once; 1 keeps the bits."""
    if array.dtype.kind == "c":
        return np.where(factor == 1, array, (array * factor).astype(array.dtype))
    product = (array.astype(np.float64) * factor).astype(array.dtype)
    # A response that enlarges makes no finite value inf.
    over = np.isfinite(array) & np.isinf(product)
    most = np.copysign(_most(array.dtype), product)
    return np.where(factor == 1, array, np.where(over, most, product))


def _stored(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new = value.astype(dtype)
    over = np.isfinite(value) & ~np.isfinite(new)
    return np.where(over, np.copysign(_most(dtype), new), new)


def _most(dtype: np.dtype) -> np.ndarray:
    """Return the largest finite value of a dtype, those of other packages too."""
    return np.nextafter(np.asarray(np.inf, dtype), np.zeros((), dtype))


def _refuse_nonfinite(arrays: _Arrays) -> None:
    bad = [name for name, array in arrays.values.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"the gradients of {', '.join(bad)} hold inf or NaN; nothing changed")
