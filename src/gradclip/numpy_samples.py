"""Clipping of each sample's gradient with NumPy: the reference, from gradients written out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from ._publish import publish
from .arrays import Values
from .checks import choice
from .engine.sample_edits import edited, written_stages
from .engine.sample_pass import SampleResult, decide, numbers_of, result_of, stateless_stages
from .engine.samples import EPS, Squares
from .errors import PolicyError
from .method.read import PolicyLike, as_policy

__all__ = ["per_sample"]

Rows = TypeVar("Rows", Sequence[Values], Mapping[str, Values])


def per_sample(
    rows: Rows,
    policy: PolicyLike = "norm:1.0",
    reduction: Literal["mean", "sum"] = "mean",
    *,
    weights: Rows | None = None,
) -> tuple[Rows, SampleResult]:
    """Clip the gradient of each sample, and add them.

    grads = Σ cᵢ·rowsᵢ / D, with cᵢ the coefficient of a sample, and D the size of the batch for
    the mean, 1 for the sum.

    Args:
        rows: a list or a dictionary of arrays of floats, one for each parameter, shape (batch,
            …), with the parameter's shape after the batch. The keys are the names for rules by
            name, a list's are "0", "1", …. Not mutated.
        policy: about the gradient of one sample: scope "global", all parameters that the policy
            covers, "tensor", each, "unit", each row of each, or "element", each value. The
            threshold is a number, or for units a ratio to the weights; the response rescales,
            smooths, normalises, zeroes or clamps.
        reduction: "mean" or "sum" of the clipped gradients.
        weights: the parameters, in a container like that of the rows, for a policy that compares
            gradients with them, such as `agc`. Not mutated.

    Returns:
        The gradients in the same container, with the same dtypes, and the result.

    Raises:
        PolicyError: an argument is wrong, or the policy is not one for samples, remembers
            something, or needs the weights.

    Numerics: everything is float64 until the last rounding, which goes toward zero. A coefficient
        is rounded down by a bound on the error of the norm: the exact norm of cᵢ·rowsᵢ is at most
        the limit, and so is that of the gradients for a batch of one. A sample within some 1e-14
        of the limit may be scaled by as much. A sample with inf or NaN counts as 0 and is told in
        `skipped`.

    Example:
        >>> import numpy as np
        >>> rows = [np.asarray([[3.0, 4.0], [0.3, 0.4]])]
        >>> grads, result = per_sample(rows, "norm:1.0", "sum")
        >>> grads[0].round(3), result.sample_norms, int(result.clipped)
        (array([0.9, 1.2]), array([5. , 0.5]), 1)

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1, without the noise.
    """
    choice("reduction", reduction, ("mean", "sum"))
    pairs = rows.items() if isinstance(rows, Mapping) else enumerate(rows)
    named = {str(name): np.asarray(each) for name, each in pairs}
    batch = _batch(named)
    stages = stateless_stages(as_policy(policy), list(named))
    written = written_stages(stages)
    with np.errstate(all="ignore"):
        wide = {name: x.astype(np.float64) for name, x in named.items()}
        scale = _largest([_flat(x) for x in wide.values()])
        squares = [_squares(x, scale) for x in wide.values()]
        coefs, sound = decide(stages, squares, scale, np)
        edits = {}
        for i, (name, x) in enumerate(wide.items()):
            if i in written:
                heavy = partial(_weight, weights, name, x.shape[1:])
                edit = edited(written[i], name, x, np, weights=heavy, scale=scale)
                edits[i] = edit, _squares(edit.values, scale)
        result = result_of(numbers_of(squares, scale, coefs, sound, edits, np), np)
        divisor = max(batch, 1) if reduction == "mean" else 1
        grads = {}
        for i, (name, x) in enumerate(named.items()):
            rows_now = edits[i][0].values if i in edits else wide[name]
            kept = np.where(sound[:, None], _flat(rows_now), 0.0)  # 0·NaN would be NaN.
            total = (coefs[i][:, None] * kept).sum(0) / divisor
            grads[name] = _toward_zero(total.reshape(x.shape[1:]), x.dtype)
    done = grads if isinstance(rows, Mapping) else list(grads.values())
    return done, result  # type: ignore[return-value]


def _batch(named: Mapping[str, np.ndarray]) -> int:
    """Return how many samples all arrays have."""
    if not named:
        raise PolicyError.of("rows", [], "give the gradients of at least one parameter")
    first = next(iter(named.values()))
    for name, x in named.items():
        if x.dtype.kind not in "fV":
            remedy = "the gradients of samples are arrays of real floats"
            raise PolicyError.of(f"rows[{name}].dtype", str(x.dtype), remedy)
        if x.ndim == 0 or len(x) != len(first):
            wanted = "the samples" if first.ndim == 0 else f"{len(first)} samples"
            remedy = f"its first axis counts {wanted}"
            raise PolicyError.of(f"rows[{name}].shape", x.shape, remedy)
    return len(first)


def _largest(flat: Sequence[np.ndarray]) -> np.ndarray:
    """Return what to divide each sample by so that no square leaves float64, shape (batch,)."""
    most = np.max([np.abs(x).max(axis=1, initial=0.0) for x in flat], axis=0)
    return np.where((most > 0) & np.isfinite(most), most, 1.0)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _squares(values: np.ndarray, scale: np.ndarray) -> Squares:
    each = _flat(values) / scale[:, None]
    squares = (each * each).sum(axis=1)
    return Squares(squares, (each.shape[1] + 8) * EPS * squares)


def _weight(
    weights: Mapping[str, Values] | Sequence[Values] | None, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a parameter, which must have the shape of its gradient."""
    if weights is None:
        remedy = "the policy compares gradients with weights: pass the weights too"
        raise PolicyError.of("weights", None, remedy)
    named = weights if isinstance(weights, Mapping) else dict(enumerate(weights))
    found = {str(key): np.asarray(each) for key, each in named.items()}.get(name)
    if found is None or found.shape != shape:
        theirs = None if found is None else found.shape
        raise PolicyError.of(f"weights[{name}].shape", theirs, f"the gradient has {shape}")
    return found.astype(np.float64)


def _toward_zero(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float64 values in a dtype, none larger in magnitude than before."""
    near = values.astype(dtype)
    over = np.abs(near.astype(np.float64)) > np.abs(values)
    return np.where(over, np.nextafter(near, np.zeros((), dtype)), near)


publish("gradclip.numpy", __all__, globals())
