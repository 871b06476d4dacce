"""gradclip.numpy.per_sample beside a loop over the samples."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import sample_oracle
from gradclip import (
    Measure,
    Policy,
    PolicyError,
    agc,
    band,
    by_name,
    by_norm,
    by_value,
    normalise,
    online_quantile,
)
from gradclip.numpy import SampleResult, per_sample
from gradclip.parts import Fixed, Ramp, Zero

SHAPES = {"w": (3, 2), "b": (2,), "scale": (), "none": (0, 4)}


def drawn(dtype: Any = np.float64, batch: int = 6) -> dict[str, np.ndarray]:
    """Return rows whose norms differ a hundredfold."""
    rng = np.random.default_rng(1)
    size = np.geomspace(0.1, 10, batch)
    return {
        name: (rng.normal(size=(batch, *s)) * size.reshape(-1, *(1,) * len(s))).astype(dtype)
        for name, s in SHAPES.items()
    }


def one_by_one(rows: dict[str, np.ndarray]) -> list[sample_oracle.Grads]:
    wide = {name: torch.tensor(x.astype(np.float64)) for name, x in rows.items()}
    return [{name: x[i] for name, x in wide.items()} for i in range(len(rows["w"]))]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_as_a_loop_over_the_samples(scope: Any, reduction: Any) -> None:
    rows = drawn()
    before = {name: x.copy() for name, x in rows.items()}
    grads, result = per_sample(rows, by_norm(1.5, scope=scope), reduction)
    rule = sample_oracle.rescaled if scope == "global" else sample_oracle.rescaled_each
    alone = one_by_one(rows)
    after = [rule(each, 1.5) for each in alone]
    norms, kept = ([sample_oracle.norm(g) for g in each] for each in (alone, after))
    assert isinstance(result, SampleResult)
    assert_allclose(result.sample_norms, norms, rtol=1e-14)
    assert_allclose(result.sample_coef, np.divide(kept, norms), rtol=1e-13)
    assert_allclose(result.removed, 1 - sum(kept) / sum(norms), rtol=1e-12)
    assert result.clipped == sum(a != b for a, b in zip(kept, norms, strict=True)) > 0
    for name, total in sample_oracle.added(after).items():
        divisor = 6 if reduction == "mean" else 1
        assert_allclose(grads[name], total.numpy() / divisor, rtol=1e-12, atol=1e-15)
        assert grads[name].shape == SHAPES[name]
        assert_array_equal(rows[name], before[name])


def test_a_list_gives_a_list_and_names_are_places() -> None:
    rows = list(drawn().values())
    grads, _ = per_sample(rows, by_name({"0": by_norm(0.5), "*": None}), "sum")
    assert isinstance(grads, list)
    assert_allclose(grads[1], rows[1].sum(0), rtol=1e-14)
    assert np.linalg.norm(grads[0]) < np.linalg.norm(rows[0].sum(0))


def test_other_responses() -> None:
    rows = [np.asarray([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])]

    def coef(policy: Policy) -> list[float]:
        return per_sample(rows, policy)[1].sample_coef.tolist()

    assert coef(normalise(1.0, eps=0.01)) == pytest.approx([1 / 5.01, 1 / 0.51, 1.0])
    assert coef(band(1.0, 2.0)) == pytest.approx([0.4, 2.0, 1.0])
    assert coef(Policy(Measure(), Fixed(high=1.0), Zero())) == [0.0, 1.0, 1.0]


def test_an_untouched_sample_keeps_its_bits() -> None:
    rows = drawn(np.float32, batch=1)
    grads, result = per_sample(rows, by_norm(1e9), "sum")
    assert result.sample_coef == 1
    for name, x in rows.items():
        assert_array_equal(grads[name], x[0])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_sample_that_is_not_finite_is_left_out(bad: float) -> None:
    rows = drawn()
    rows["b"][2, 1] = bad
    grads, result = per_sample(rows, "norm:1.0", "sum")
    others = np.arange(6) != 2
    want, without = per_sample({name: x[others] for name, x in rows.items()}, "norm:1.0", "sum")
    assert_array_equal(result.skipped, ~others)
    assert result.sample_coef[2] == 0
    assert result.removed == pytest.approx(float(without.removed))
    for name in rows:
        assert_allclose(grads[name], want[name], rtol=1e-14)


def test_an_empty_batch_gives_zeros() -> None:
    grads, result = per_sample(drawn(batch=0))
    assert all(np.all(grads[name] == 0) and grads[name].shape == SHAPES[name] for name in SHAPES)
    assert [np.shape(each) for each in result] == [(0,), (0,), (), (), (0,)]
    assert result.clipped == 0 == result.removed


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_dtype_stays(dtype: Any) -> None:
    rows = drawn(dtype)
    grads, _ = per_sample(rows, "norm:1.0", "sum")
    assert {x.dtype for x in grads.values()} == {np.dtype(dtype)}


def test_values_whose_squares_leave_float64_are_measured() -> None:
    rows = [np.asarray([[3e200, 4e200], [3e-200, 4e-200]])]
    grads, result = per_sample(rows, "norm:1.0", "sum")
    assert_allclose(result.sample_norms, [5e200, 5e-200], rtol=1e-14)
    assert math.isclose(float(np.linalg.norm(grads[0])), 1.0)


def test_what_is_not_for_samples_is_refused() -> None:
    good = [np.ones((2, 3))]
    wrong: list[tuple[Any, Any, Any, str]] = [
        (good, online_quantile(), "mean", "no call knows of earlier ones here"),
        (good, by_norm(Ramp(1.0, 0.1, 10)), "mean", "no call knows of earlier ones here"),
        (good, agc(), "mean", "pass the weights too"),
        (good, agc(Ramp(1.0, 0.1, 10)), "mean", "no call knows of earlier ones here"),
        (good, by_value([1.0, 2.0]), "mean", "an array of shape .2,. .*rows|does not broadcast"),
        (good, "spectral:1.0", "mean", "for samples, give the scope global, tensor, unit, element"),
        (good, "norm:1.0", "max", "reduction='max' is not usable"),
        ([], "norm:1.0", "mean", "at least one parameter"),
        ([*good, np.ones((3, 3))], "norm:1.0", "mean", r"rows\[1\].shape=.*counts 2 samples"),
        ([np.ones(())], "norm:1.0", "mean", r"rows\[0\].shape=\(\) .*counts the samples"),
        ([np.ones((2, 3), int)], "norm:1.0", "mean", r"rows\[0\].dtype='int64'"),
        ([np.ones((2, 3), complex)], "norm:1.0", "mean", r"rows\[0\].dtype='complex128'"),
    ]
    for rows, policy, reduction, message in wrong:
        with pytest.raises(PolicyError, match=message):
            per_sample(rows, policy, reduction)
