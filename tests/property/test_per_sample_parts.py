"""Samples clipped by value and by unit: no part of a sample exceeds its limit, in fractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradclip.jax
import gradclip.numpy
import gradclip.torch
from gradclip import Policy, agc, auto_s, by_norm, by_value, psac, smooth, tanh

SHAPES = ((3, 4), (5,))
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
RATIO, LEAST = 0.3, 0.05
Pair = tuple[Any, Any]
Rows = list[np.ndarray]


def limit_of_units(limit: float) -> dict[str, Policy]:
    return {
        "rescale": by_norm(limit, scope="unit"),
        "smooth": smooth(limit, scope="unit"),
        "columns": by_norm(limit, scope="unit", axis=1),
    }


def drawn(seed: int, batch: int, spread: float, dtypes: Pair) -> tuple[Rows, Rows]:
    """Return the gradients of two parameters, over several powers of ten, and the parameters."""
    rng = np.random.default_rng(seed)
    rows, weights = [], []
    for shape, dtype in zip(SHAPES, dtypes, strict=True):
        x = rng.normal(size=(batch, *shape)) * 10 ** (spread * rng.random((batch, *shape)))
        rows.append(x.astype(dtype))
        weights.append((rng.normal(size=shape) * rng.choice([0.01, 1.0])).astype(dtype))
    return rows, weights


def squares(x: np.ndarray, axis: int | None) -> list[Fraction]:
    """Return the exact squared norm of each unit; None takes each value as one."""
    exact = [[Fraction(float(v)) ** 2 for v in unit] for unit in _units(x, axis)]
    return [sum(unit, Fraction(0)) for unit in exact]


def _units(x: np.ndarray, axis: int | None) -> list[list[Any]]:
    if axis is None:
        return [[v] for v in x.ravel()]
    if x.ndim < 2:
        return [list(x)]
    return [list(unit.ravel()) for unit in np.moveaxis(x, axis, 0)]


class Given(nn.Module):
    """Parameters of these values, whose rows the test gives."""

    def __init__(self, weights: Rows) -> None:
        super().__init__()
        tensors = [nn.Parameter(as_tensor(w)) for w in weights]
        self.each = nn.ParameterList(tensors)


def as_tensor(x: np.ndarray) -> Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.astype(np.float32)).bfloat16()
    return torch.from_numpy(x.copy())


def with_torch(rows: Rows, policy: Policy, weights: Rows) -> tuple[Rows, Any]:
    model = Given(weights)
    clipper = gradclip.torch.per_sample(model, policy, "sum", rows="grad_sample")
    for parameter, x in zip(model.parameters(), rows, strict=True):
        parameter.grad_sample = as_tensor(x)  # type: ignore[attr-defined]
    result = clipper.clip_()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [grad.double().numpy() for grad in grads], result


def with_numpy(rows: Rows, policy: Policy, weights: Rows) -> tuple[Rows, Any]:
    grads, result = gradclip.numpy.per_sample(rows, policy, "sum", weights=weights)
    return list(grads), result


def dots(params: Any, *x: Any) -> Any:
    """A loss whose gradient is its input, with no rounding."""
    return sum(jnp.sum(w * each) for w, each in zip(params, x, strict=True))


def with_jax(rows: Rows, policy: Policy, weights: Rows) -> tuple[Rows, Any]:
    with jax.enable_x64(any(x.dtype == np.float64 for x in rows)):
        function = gradclip.jax.per_sample(dots, policy, reduction="sum")
        params = list(map(jnp.asarray, weights))
        grads, result = jax.jit(function)(params, *map(jnp.asarray, rows))
        return list(map(np.asarray, grads)), result


BACKENDS = pytest.mark.parametrize("backend", [with_torch, with_numpy, with_jax])
Backend = Callable[[Rows, Policy, Rows], tuple[Rows, Any]]
CASES = given(
    seed=st.integers(0, 2**32),
    batch=st.sampled_from([1, 1, 3]),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    ulps=st.integers(-3, 3),
)


def first_axis(backend: Backend) -> int:
    return 1 if backend is with_jax else 0


def assert_within(
    grads: Rows, most: list[list[Fraction]], axes: int | None, batch: int, result: Any
) -> None:
    """Refuse a part over its limit, whose square is given, or a sample over the sensitivity."""
    room = Fraction(1 if batch == 1 else batch + Fraction(1, 10**12)) ** 2
    for grad, limits in zip(grads, most, strict=True):
        for square, limit in zip(squares(grad, axes), limits, strict=True):
            assert square <= limit * room
    whole = sum(itertools.chain(*most), Fraction(0))
    if hasattr(result, "sensitivity"):
        bound = Fraction(float(result.sensitivity)) ** 2
        assert whole <= bound <= whole * (1 + Fraction(1, 10**13))


@BACKENDS
@settings(max_examples=20, deadline=None)
@CASES
def test_no_value_exceeds_the_limit(
    backend: Backend, seed: int, batch: int, spread: float, dtypes: Pair, ulps: int
) -> None:
    rows, weights = drawn(seed, batch, spread, dtypes)
    limit = abs(float(rows[0][0, 0, 0])) * (1 + ulps * 2.0**-53) or 1.0
    for policy in (by_value(limit), by_value(-limit / 3, limit), tanh(limit)):
        grads, result = backend(rows, policy, weights)
        most = [[Fraction(limit) ** 2] * math.prod(shape) for shape in SHAPES]
        assert_within(grads, most, None, batch, result)
        if policy == by_value(limit) and batch == 1:
            kept = [np.abs(x[0].astype(np.float64)) <= limit for x in rows]
            for x, grad, same in zip(rows, grads, kept, strict=True):
                assert (grad[same] == x[0][same]).all(), "a value within the limit changed"


@BACKENDS
@settings(max_examples=20, deadline=None)
@CASES
def test_no_unit_exceeds_the_limit(
    backend: Backend, seed: int, batch: int, spread: float, dtypes: Pair, ulps: int
) -> None:
    rows, weights = drawn(seed, batch, spread, dtypes)
    limit = math.sqrt(squares(rows[0][0], 0)[1]) * (1 + ulps * 2.0**-53) or 1.0
    for name, policy in limit_of_units(limit).items():
        axis = 1 if name == "columns" else first_axis(backend)
        grads, result = backend(rows, policy, weights)
        most = [[Fraction(limit) ** 2] * SHAPES[0][axis], [Fraction(limit) ** 2]]
        assert_within(grads, most, axis, batch, result)


@BACKENDS
@settings(max_examples=20, deadline=None)
@CASES
def test_no_unit_exceeds_its_ratio_to_the_weights(
    backend: Backend, seed: int, batch: int, spread: float, dtypes: Pair, ulps: int
) -> None:
    rows, weights = drawn(seed, batch, spread, dtypes)
    axis = first_axis(backend)
    heavy = math.sqrt(squares(weights[0], axis)[1]) or 1.0
    ratio = math.sqrt(squares(rows[0][0], axis)[1]) / heavy * (1 + ulps * 2.0**-53) or RATIO
    grads, result = backend(rows, agc(ratio, LEAST), weights)
    least, square = Fraction(LEAST) ** 2, Fraction(ratio) ** 2
    most = [[square * max(w, least) for w in squares(x, axis)] for x in weights]
    room = 1 if batch == 1 else batch + Fraction(1, 10**12)
    for grad, limits in zip(grads, most, strict=True):
        for found, limit in zip(squares(grad, axis), limits, strict=True):
            assert found <= limit * Fraction(room) ** 2
    if hasattr(result, "sensitivity"):  # Of limits that are rounded down.
        whole = sum(itertools.chain(*most), Fraction(0))
        bound = Fraction(float(result.sensitivity)) ** 2
        assert bound <= whole * (1 + Fraction(1, 10**12))
        if batch == 1:
            moved = sum((sum(squares(grad, None), Fraction(0)) for grad in grads), Fraction(0))
            assert moved <= bound


class Two(nn.Module):
    """A linear layer over a sequence and a table, whose gradients are sums of several terms."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3, dtype=dtype)
        self.b = nn.Embedding(3, 2, dtype=dtype)

    def forward(self, x: Tensor, words: Tensor) -> list[Tensor]:
        return [self.a(x), self.b(words)]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    times=st.integers(1, 4),
    near=st.sampled_from([1.0, 0.1, 1e-4]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    ulps=st.integers(-3, 3),
)
def test_no_unit_of_a_sum_that_cancels_exceeds_the_limit(
    seed: int, times: int, near: float, dtype: torch.dtype, ulps: int
) -> None:
    gen = torch.Generator().manual_seed(seed)
    model = Two(dtype)
    x = torch.randn(1, 2 * times, 4, generator=gen).to(dtype)
    words = torch.randint(0, 3, (1, 2 * times), generator=gen)
    pulls = [torch.randn(1, 2 * times, w, generator=gen).to(dtype) for w in (3, 2)]
    x[:, times:], words[:, times:] = x[:, :times], words[:, :times]
    for i, pull in enumerate(pulls):
        pull[:, times:] = -pull[:, :times] * (1 - near)
        # In float64, where no last rounding hides an error, products of these are exact.
        pulls[i] = pull.float().to(dtype)
    x = x.float().to(dtype)
    exact = _exact_units(x[0], words[0], pulls)
    limit = math.sqrt(exact[0]) * (1 + ulps * 2.0**-53) or 1.0
    clipper = gradclip.torch.per_sample(model, by_norm(limit, scope="unit"), "sum")
    torch.autograd.backward(model(x, words), pulls)
    result = clipper.clip_()
    for parameter in model.parameters():
        assert parameter.grad is not None
        for square in squares(parameter.grad.double().numpy(), 0):
            assert square <= Fraction(limit) ** 2
    assert float(result.sensitivity) == pytest.approx(limit * math.sqrt(3 + 1 + 3), rel=1e-14)
    assert result.ran["rows"] == ("a.weight", "a.bias", "b.weight")


def _exact_units(x: Tensor, words: Tensor, pulls: list[Tensor]) -> list[Fraction]:
    """Return the exact squared norms of the rows of the linear weight."""
    left = [[Fraction(v) for v in row] for row in pulls[0][0].double().tolist()]
    right = [[Fraction(v) for v in row] for row in x.double().tolist()]
    cells = [
        [
            sum((g[i] * a[j] for g, a in zip(left, right, strict=True)), Fraction(0))
            for j in range(4)
        ]
        for i in range(3)
    ]
    assert len(words) == len(left)
    return [sum((cell * cell for cell in row), Fraction(0)) for row in cells]


@BACKENDS
@pytest.mark.parametrize("make", [auto_s, psac])
def test_no_tensor_exceeds_the_limit_of_its_own(backend: Backend, make: Any) -> None:
    rows, weights = drawn(3, 1, 3.0, (np.float32, np.float16))
    grads, _ = backend(rows, make(0.7, scope="tensor"), weights)
    assert all(sum(squares(grad, None), Fraction(0)) <= Fraction(0.7) ** 2 for grad in grads)
