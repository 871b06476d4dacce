"""What holds for every gradient: the backends agree, and the rules keep their laws."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import gradclip.numpy
import oracle
from conftest import PATHS, OnPath
from gradclip import ClipResult, GradclipWarning, by_norm, by_value, floor
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper, clip_grad_norm_

Grads = list[np.ndarray]

# ---- any gradients, any policy -------------------------------------------------------------

TYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16}


def _values(dtype: Any) -> st.SearchStrategy[float]:
    """Return floats of every size that the type has up to 1e30, simple ones often."""
    width = np.dtype(dtype).itemsize * 8
    largest = float(np.float32(1e30)) if width > 16 else 65504.0
    some: Any = {"width": width, "allow_nan": False, "allow_infinity": False}
    any_size = st.floats(-largest, largest, **some)
    return st.one_of(st.sampled_from([0.0, -0.0, 1.0, -3.0, 0.5]), st.floats(-10, 10), any_size)


@st.composite
def gradients(draw: st.DrawFn, *, spoiled: bool = False) -> Grads:
    """Draw up to five arrays of up to two axes and any of three types, none over 1e30."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        dtype = TYPES[draw(st.sampled_from(sorted(TYPES)))]
        shape = draw(st.lists(st.integers(0, 4), max_size=2).map(tuple))
        size = math.prod(shape)
        values = draw(st.lists(_values(dtype), min_size=size, max_size=size))
        found.append(np.asarray(values, np.float64).astype(dtype).reshape(shape))
    if spoiled:
        bad = np.asarray([1.0, draw(st.sampled_from([math.inf, -math.inf, math.nan]))])
        found.insert(draw(st.integers(0, len(found))), bad.astype(np.float32))
    return found


limits = st.floats(1e-3, 100)
orders: st.SearchStrategy[Any] = st.sampled_from([2.0, 1.0, math.inf, 0.5, 3.0, 7.0, "rms"])
scopes: st.SearchStrategy[Any] = st.sampled_from(["global", "tensor", "unit"])
norm_policies = st.builds(by_norm, limits, orders, scopes)
value_policies = st.builds(by_value, limits) | st.builds(
    lambda a, b: by_value(-a, b), limits, limits
)
floor_policies = st.builds(floor, limits, orders, scopes)
single: st.SearchStrategy[AnyPolicy] = st.one_of(norm_policies, value_policies, floor_policies)
policies: st.SearchStrategy[AnyPolicy] = single | st.builds(lambda a, b: a | b, single, single)

every_path = pytest.mark.parametrize("where", PATHS)
quick = settings(deadline=None, max_examples=30)


def by_torch(
    on_path: OnPath, where: str, grads: Grads, policy: AnyPolicy, nonfinite: Any = "propagate"
) -> tuple[Grads, ClipResult]:
    """Clip copies with gradclip.torch."""
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=_torch(g))) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(grad.copy())
    with on_path(where), warnings.catch_warnings():
        warnings.simplefilter("ignore", GradclipWarning)  # a skip
        result = Clipper(params, policy, nonfinite=nonfinite).clip_()
    return [p.grad.numpy() for p in params if p.grad is not None], result


def by_numpy(
    grads: Grads, policy: AnyPolicy, nonfinite: Any = "propagate"
) -> tuple[Grads, ClipResult]:
    """Clip with the reference backend."""
    clipped, _, result = gradclip.numpy.clip(grads, policy, nonfinite=nonfinite)
    return list(clipped), result


def _torch(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, array.dtype)).dtype


def _assert_close(found: Grads, expected: Grads, ulps: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        info = np.finfo(a.dtype)
        with np.errstate(over="ignore"):
            rtol = ulps * float(info.eps) + 16 * 2.0**-52  # the norm's own rounding, in float64
            close: dict[str, Any] = {"rtol": rtol, "atol": 2 * float(info.smallest_subnormal)}
        np.testing.assert_allclose(a.astype(float), b.astype(float), **close)


# ---- the backends agree --------------------------------------------------------------------


@every_path
@quick
@given(gradients(), norm_policies | value_policies)
def test_torch_agrees_with_numpy(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    expected, reference = by_numpy(grads, policy)
    found, result = by_torch(on_path, where, grads, policy)
    _assert_close(found, expected, ulps=2)
    assert float(result.total_norm) == pytest.approx(float(reference.total_norm), rel=1e-13)
    for name in ("clipped_norm", "coef", "removed", "cosine"):
        mine, theirs = float(getattr(result, name)), float(getattr(reference, name))
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6), name


@every_path
@quick
@given(gradients(spoiled=True), norm_policies | value_policies, st.sampled_from(["skip", "zero"]))
def test_torch_agrees_with_numpy_on_what_is_not_finite(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy, nonfinite: str
) -> None:
    expected, reference = by_numpy(grads, policy, nonfinite)
    found, result = by_torch(on_path, where, grads, policy, nonfinite)
    _assert_close(found, expected, ulps=2)
    assert bool(result.skipped) == bool(reference.skipped) == (nonfinite == "skip")
    assert result.nonfinite == reference.nonfinite


# ---- laws ----------------------------------------------------------------------------------

every_backend = pytest.mark.parametrize("where", ["numpy", *PATHS])


def clip(on_path: OnPath, where: str, grads: Grads, policy: AnyPolicy) -> tuple[Grads, ClipResult]:
    """Clip on any backend."""
    if where == "numpy":
        return by_numpy(grads, policy)
    return by_torch(on_path, where, grads, policy)


@every_backend
@quick
@given(gradients(), limits, orders)
def test_norm_clipping_keeps_the_limit(
    where: str, on_path: OnPath, grads: Grads, limit: float, order: Any
) -> None:
    found, _ = clip(on_path, where, grads, by_norm(limit, order=order))
    eps = max(float(np.finfo(g.dtype).eps) for g in grads)
    wide = [oracle.wide(g) for g in found]
    assert oracle.norm(wide, order) <= limit * (1 + 4 * eps) or _small(found)


def _small(grads: Grads) -> bool:
    """Whether a value is subnormal, where the grid is coarser than eps says."""
    return any(
        ((g != 0) & (np.abs(g) < 2 * np.finfo(g.dtype).smallest_normal)).any() for g in grads
    )


@every_backend
@quick
@given(gradients(), norm_policies | value_policies)
def test_clipping_never_enlarges_a_value(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    found, result = clip(on_path, where, grads, policy)
    assert all((np.abs(a) <= np.abs(b)).all() for a, b in zip(found, grads, strict=True))
    assert float(result.clipped_norm) <= float(result.total_norm) * (1 + 1e-15)
    assert 0 <= float(result.coef) <= 1 + 1e-15


@every_backend
@quick
@given(gradients(), floor_policies)
def test_a_floor_never_shrinks_a_value_and_keeps_zero(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    found, _ = clip(on_path, where, grads, policy)
    for after, before in zip(found, grads, strict=True):
        assert (np.abs(after) >= np.abs(before)).all()
        assert ((after == 0) == (before == 0)).all()
        assert (np.signbit(after) == np.signbit(before)).all()


@every_backend
@quick
@given(gradients(), value_policies)
def test_clamping_twice_is_clamping_once(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    once, _ = clip(on_path, where, grads, policy)
    twice, again = clip(on_path, where, once, policy)
    assert [a.tobytes() for a in twice] == [a.tobytes() for a in once]
    assert not bool(again.clipped)


@every_backend
@quick
@given(gradients(), norm_policies)
def test_clipping_twice_is_clipping_once_but_for_rounding(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    once, _ = clip(on_path, where, grads, policy)
    twice, _ = clip(on_path, where, once, policy)
    eps = max(float(np.finfo(g.dtype).eps) for g in grads)
    for a, b in zip(twice, once, strict=True):
        tiny = 2 * float(np.finfo(a.dtype).smallest_subnormal)
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=5 * eps, atol=tiny)


@every_backend
@quick
@given(gradients(), limits, orders, st.integers(-20, 20))
def test_scaling_gradient_and_limit_by_a_power_of_two_scales_the_result(
    where: str, on_path: OnPath, grads: Grads, limit: float, order: Any, power: int
) -> None:
    wide = [g.astype(np.float64) for g in grads]
    assume(all((np.abs(g[g != 0]) > 1e-250).all() for g in wide))
    first, _ = clip(on_path, where, wide, by_norm(limit, order=order))
    scaled = [np.asarray(np.ldexp(g, power)) for g in wide]
    second, _ = clip(on_path, where, scaled, by_norm(math.ldexp(limit, power), order=order))
    # Only a sum of powers that is no square rounds otherwise at another size.
    _assert_close(second, [np.ldexp(g, power) for g in first], ulps=8)


@every_backend
@quick
@given(gradients(), limits)
def test_a_larger_limit_cuts_no_more(
    where: str, on_path: OnPath, grads: Grads, limit: float
) -> None:
    _, tight = clip(on_path, where, grads, by_norm(limit))
    _, wide = clip(on_path, where, grads, by_norm(2 * limit))
    assert float(tight.removed) >= float(wide.removed)
    assert float(tight.clipped_norm) <= float(wide.clipped_norm)
    assert bool(tight.clipped) >= bool(wide.clipped)


@every_backend
@quick
@given(gradients(), policies)
def test_the_input_is_not_changed_and_signs_stay(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    before = [g.tobytes() for g in grads]
    found, _ = clip(on_path, where, grads, policy)
    assert [g.tobytes() for g in grads] == before
    for a, b in zip(found, grads, strict=True):
        assert ((a == 0) | (np.sign(a) == np.sign(b))).all()
        assert a.shape == b.shape


@every_backend
@quick
@given(gradients(), policies)
@example([np.asarray([0.5, 5.5e7], np.float32)], floor(1.0, scope="unit"))
def test_what_is_not_called_clipped_has_not_changed(
    where: str, on_path: OnPath, grads: Grads, policy: AnyPolicy
) -> None:
    found, result = clip(on_path, where, grads, policy)
    unchanged = [a.tobytes() for a in found] == [b.tobytes() for b in grads]
    assert unchanged or bool(result.clipped)


@every_backend
@quick
@given(gradients(), limits, st.randoms(use_true_random=False))
def test_the_order_of_the_parameters_does_not_matter(
    where: str, on_path: OnPath, grads: Grads, limit: float, random: Any
) -> None:
    order = list(range(len(grads)))
    random.shuffle(order)
    straight, _ = clip(on_path, where, grads, by_norm(limit))
    shuffled, _ = clip(on_path, where, [grads[i] for i in order], by_norm(limit))
    _assert_close(shuffled, [straight[i] for i in order], ulps=1)


@every_path
@quick
@given(gradients(), limits, st.sampled_from([2.0, 1.0, math.inf]))
def test_the_drop_in_is_the_policy(
    where: str, on_path: OnPath, grads: Grads, limit: float, order: float
) -> None:
    expected, result = by_torch(on_path, where, grads, by_norm(limit, order))
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=_torch(g))) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(grad.copy())
    with on_path(where):
        norm = clip_grad_norm_(params, limit, order)
    assert [p.grad.numpy().tobytes() for p in params if p.grad is not None] == [
        e.tobytes() for e in expected
    ]
    assert float(norm) == pytest.approx(float(result.total_norm), rel=1e-6)
