"""JAX and NumPy: the norm of a clipped sample never exceeds the limit, in fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip.jax
import gradclip.numpy
from gradclip import Measure, Policy, auto_s, by_norm, normalise, per_layer, psac, smooth
from gradclip.jax.sample_rows import rounded_down
from gradclip.parts import Fixed, Smooth

WIDTHS = (5, 3)
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


def dots(params: Any, *x: Any) -> Any:
    """A loss whose gradient is its input, with no rounding."""
    return sum(jnp.sum(w * each) for w, each in zip(params, x, strict=True))


def policies(limit: float) -> dict[str, Policy]:
    return {
        "rescale": by_norm(limit),
        "smooth": smooth(limit),
        "linear": smooth(limit, shape="linear"),
        "tanh": Policy(Measure(), Fixed(high=limit), Smooth("tanh")),
        "normalise": normalise(limit, eps=0.0),
        "auto-s": auto_s(limit),
        "psac": psac(limit),
        "psac of large norms": psac(limit, r=1e-6),
        "per layer": per_layer(limit),
    }


def drawn(seed: int, batch: int, spread: float, dtypes: tuple[Any, Any]) -> list[np.ndarray]:
    """Return the gradients of two parameters, over several powers of ten."""
    rng = np.random.default_rng(seed)
    rows = []
    for width, dtype in zip(WIDTHS, dtypes, strict=True):
        x = rng.normal(size=(batch, width)) * 10 ** (spread * rng.random((batch, width)))
        rows.append(x.astype(dtype))
    return rows


def exact(rows: list[np.ndarray]) -> list[Fraction]:
    """Return the squared norm of each sample, in fractions."""
    return [
        sum((Fraction(float(v)) ** 2 for x in rows for v in x[i].ravel()), Fraction(0))
        for i in range(len(rows[0]))
    ]


def with_numpy(rows: list[np.ndarray], policy: Policy) -> Any:
    return gradclip.numpy.per_sample(rows, policy, "sum")


def with_jax(rows: list[np.ndarray], policy: Policy) -> Any:
    wide = any(x.dtype == np.float64 for x in rows)
    with jax.enable_x64(wide):
        params = [jnp.zeros(x.shape[1:], x.dtype) for x in rows]
        function = gradclip.jax.per_sample(dots, policy, reduction="sum")
        return jax.tree.map(np.asarray, jax.jit(function)(params, *map(jnp.asarray, rows)))


@pytest.mark.parametrize("backend", [with_numpy, with_jax])
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    ulps=st.integers(-3, 3),
    name=st.sampled_from(sorted(policies(1.0))),
)
def test_no_sample_exceeds_the_limit(
    backend: Callable[..., Any],
    seed: int,
    batch: int,
    spread: float,
    dtypes: tuple[Any, Any],
    ulps: int,
    name: str,
) -> None:
    rows = drawn(seed, batch, spread, dtypes)
    squares = exact(rows)
    # A limit a few last places beside the norm of a sample is the hardest one.
    limit = math.sqrt(squares[0]) * (1 + ulps * 2.0**-53) or 1.0
    grads, result = backend(rows, policies(limit)[name])
    narrow = 1e-13 if result.sample_coef.dtype == np.float64 else 2.0**-23
    assert result.sample_coef.shape == (batch,)
    for square, coef in zip(squares, result.sample_coef.tolist(), strict=True):
        if name != "per layer":  # Its quotient of norms is rounded.
            assert Fraction(coef) ** 2 * square <= Fraction(limit) ** 2
        if square > 0 and name == "rescale":
            best = min(1.0, limit / math.sqrt(square))
            assert coef >= best * (1 - narrow), "more is cut than the errors ask for"
    if batch == 1:
        (moved,) = exact([np.asarray(g)[None] for g in grads])
        assert moved <= Fraction(limit) ** 2


@pytest.mark.parametrize("backend", [with_numpy, with_jax])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 4), limit=st.floats(1e-3, 1e3))
def test_each_parameter_stays_within_a_limit_of_its_own(
    backend: Callable[..., Any], seed: int, batch: int, limit: float
) -> None:
    rows = drawn(seed, batch, 2.0, (np.float32, np.float32))
    grads, result = backend(rows, by_norm(limit, scope="tensor"))
    total = Fraction(batch * limit) ** 2
    for x, grad in zip(rows, grads, strict=True):
        assert exact([np.asarray(grad)[None]])[0] <= total * (1 + Fraction(1, 10**12))
        if batch == 1:
            assert exact([np.asarray(grad)[None]])[0] <= Fraction(limit) ** 2
        assert grad.shape == x.shape[1:]
    norms = [math.sqrt(square) for square in exact(rows)]
    np.testing.assert_allclose(result.sample_norms, norms, rtol=1e-6)


@settings(max_examples=300, deadline=None)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    dtype=st.sampled_from(DTYPES[:3]),
)
def test_rounding_goes_toward_zero(value: float, dtype: Any) -> None:
    info = ml_dtypes.finfo(dtype)
    with jax.enable_x64(True):
        found = float(rounded_down(jnp.asarray(value), np.dtype(dtype)))
    below = abs(found)
    assert float(np.asarray(found, dtype)) == found, "the dtype has this number"
    assert below <= abs(value)
    assert found == 0 or math.copysign(1, found) == math.copysign(1, value)
    if below < float(info.max):
        after = np.nextafter(np.asarray(below, dtype), np.asarray(np.inf, dtype))
        assert float(after) > abs(value) or abs(value) < 2.0**-1000, "a nearer number is left out"
