"""Numbers at the ends of their range: nothing finite becomes inf, NaN or 0 on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip.numpy
from gradclip import Policy, PolicyError
from gradclip.engine.one_number import NUMBER
from gradclip.method.measure import Measure
from gradclip.parts import (
    Clamp,
    Limits,
    MovingAverage,
    Normalise,
    Power,
    Rescale,
    ShrinkSpikes,
    Smooth,
)
from gradclip.torch import Clipper

sizes = st.floats(2.0**-149, 2.0**127, width=32)


@pytest.mark.parametrize("shape", ["root", "linear", "tanh"])
@settings(deadline=None, max_examples=60)
@given(norm=sizes, limit=sizes)
def test_a_smooth_factor_is_right_at_every_ratio(shape: str, norm: float, limit: float) -> None:
    """The judge computes in float64, where no such ratio leaves the range."""
    ratio = np.float64(norm) / np.float64(limit)
    exact = {
        "root": 1 / np.hypot(1, ratio),
        "linear": 1 / (1 + ratio),
        "tanh": np.tanh(ratio) / ratio,
    }[shape]
    with np.errstate(all="ignore"):
        found = Smooth(shape).factors(np.float32([norm]), Limits(high=limit), np)  # type: ignore[arg-type]
    assert 0 <= found[0] <= 1
    assert found[0] == pytest.approx(exact, rel=1e-5, abs=2.0**-148)


@pytest.mark.parametrize("shape", ["root", "linear", "tanh"])
def test_a_smooth_limit_of_zero_gives_zero_and_no_nan(shape: str) -> None:
    found = Smooth(shape).factors(np.asarray([0.0, 2.0]), Limits(high=0.0), np)  # type: ignore[arg-type]
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("response", [Power(0.5), Power(1.0), ShrinkSpikes(), Clamp()])
def test_zeros_keep_their_signs_and_divide_nothing(response: Power | ShrinkSpikes | Clamp) -> None:
    zeros = np.asarray([0.0, -0.0])
    found = response.values(zeros, np.float64(0), Limits(high=1.0), np)
    assert found.tobytes() == zeros.tobytes()


@settings(deadline=None, max_examples=40)
@given(values=st.lists(sizes, min_size=1, max_size=4), limit=st.floats(2.0**-90, 2.0**1022))
def test_normalise_makes_nothing_inf(values: list[float], limit: float) -> None:
    with np.errstate(over="ignore"):
        factors = Normalise(eps=0.0).factors(np.asarray(values), Limits(high=limit), np)
    assert np.isfinite(factors).all()
    for scope in ("global", "tensor", "unit"):
        for kind in (np.float16, np.float32):
            with np.errstate(over="ignore"):
                grad = np.asarray(values).astype(kind)
            if not np.isfinite(grad).all():
                continue
            policy = f"normalise:{limit!r},eps=0,scope={scope}"
            clipped, _, _ = gradclip.numpy.clip([grad], policy)
            assert np.isfinite(clipped[0]).all()
            param = torch.nn.Parameter(torch.zeros(grad.shape).to(torch.from_numpy(grad).dtype))
            param.grad = torch.from_numpy(grad.copy())
            Clipper([param], policy).clip_()
            assert torch.isfinite(param.grad).all()


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]
)
def test_a_loss_has_any_float_dtype(kind: torch.dtype, path: str) -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    clipper = Clipper([param], "skip-outliers:of=loss")
    assert not bool(clipper.clip_(loss=torch.tensor([1.5]).to(kind)).skipped), path
    with pytest.raises(PolicyError, match="one real number"):
        clipper.clip_(loss=torch.ones(2, dtype=kind))
    assert torch.equal(param.grad, torch.ones(2))


@pytest.mark.parametrize("one", [np.float16(1), np.float32(1), np.int64(1), np.asarray(1.0)])
def test_a_limit_may_be_a_numpy_scalar(one: object) -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    from gradclip.torch import clip_grad_norm_, clip_grad_value_

    assert float(clip_grad_norm_([param], one, norm_type=np.float32(2))) == 5  # type: ignore[arg-type]
    clip_grad_value_([param], one)  # type: ignore[arg-type]
    assert torch.allclose(param.grad, torch.tensor([0.6, 0.8]))


UNITS = Policy(Measure("unit"), MovingAverage(2.0, 0.9), Rescale())


def test_a_late_gradient_whose_units_nobody_knew_is_refused() -> None:
    first: dict[str, object] = {"a": np.ones((3, 2)), "b": None}
    _, state, _ = gradclip.numpy.clip(first, UNITS)
    both = {"a": np.ones((3, 2)), "b": np.ones((4, 2))}
    with pytest.raises(PolicyError, match=r"late gradient.*zeros or its weight"):
        gradclip.numpy.clip(both, UNITS, state)
    _, state, _ = gradclip.numpy.clip(first, UNITS, weights=both)
    for grads in (both, first, both):
        _, state, _ = gradclip.numpy.clip(grads, UNITS, state)


def test_another_shape_than_before_is_refused() -> None:
    _, state, _ = gradclip.numpy.clip([np.ones((3, 2))], "acclip")
    with pytest.raises(PolicyError, match=r"grads\[0\].shape=\(2, 2\)"):
        gradclip.numpy.clip([np.ones((2, 2))], "acclip", state)


def test_a_norm_beyond_float64_is_inf_and_no_crash() -> None:
    _, _, result = gradclip.numpy.clip([np.ones(10)], "norm:1,order=0.001")
    assert result.total_norm == np.inf


SPECIAL = [0.0, -0.0, 1.0, -1.0, 5e-324, -1e300, 710.0, -746.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("name", ["abs", "sqrt", "exp", "log", "tanh", "isfinite"])
def test_a_function_of_a_number_rounds_as_that_of_an_array(name: str) -> None:
    """Else the rules of one norm would give other bits than the same rules over tensors."""
    numbers = np.concatenate([SPECIAL, np.random.default_rng(0).normal(0, 20, 2000)])
    with np.errstate(all="ignore"):
        found = [getattr(NUMBER, name)(one) for one in numbers]
        expected = [getattr(np, name)(np.asarray([one]))[0] for one in numbers]
    assert {type(one) for one in found} == {type(expected[0])}
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["minimum", "maximum", "pow"])
def test_a_function_of_two_numbers_rounds_as_that_of_arrays(name: str) -> None:
    numbers = np.concatenate([SPECIAL, np.random.default_rng(0).lognormal(0, 3, 40)])
    pairs = [(a, b) for a in numbers for b in numbers]
    with np.errstate(all="ignore"):
        found = [getattr(NUMBER, name)(a, b) for a, b in pairs]
        expected = [getattr(np, name)(np.asarray([a]), np.asarray([b]))[0] for a, b in pairs]
    assert {type(one) for one in found} == {np.float64}
    np.testing.assert_array_equal(found, expected)


def test_a_number_where_a_flag_says_so_is_that_of_an_array() -> None:
    for flag in (np.bool_(True), np.bool_(False)):
        for yes, no in ((np.float64(2), 3.0), (2.0, np.float64(3)), (2.0, 3.0)):
            found = NUMBER.where(flag, yes, no)
            assert type(found) is np.float64
            assert found == np.where(flag, yes, no)
