"""gradclip.numpy.per_sample by value and by unit, beside a loop over the samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gradclip import Policy, agc, by_name, by_norm, by_value, psac, tanh
from gradclip.errors import PolicyError
from gradclip.numpy import per_sample

SHAPES = {"w": (3, 2), "b": (2,), "scale": (), "none": (0, 4)}
Rows = dict[str, np.ndarray]


def drawn(batch: int = 6) -> Rows:
    """Return rows whose norms differ a hundredfold."""
    rng = np.random.default_rng(1)
    size = np.geomspace(0.1, 10, batch)
    return {
        name: rng.normal(size=(batch, *s)) * size.reshape(-1, *(1,) * len(s))
        for name, s in SHAPES.items()
    }


def weights_of() -> Rows:
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def units(g: np.ndarray, limit: Any, axis: int = 0) -> np.ndarray:
    """Return one sample's gradient with each unit at its limit or under it."""
    if g.ndim < 2:
        size = math.sqrt(float((g * g).sum()))
        return g * min(1.0, float(np.max(limit)) / size) if size else g
    size = np.maximum(np.sqrt((g * g).sum(axis=1 - axis, keepdims=True)), 1e-300)
    return g * np.minimum(1.0, np.reshape(limit, size.shape if np.ndim(limit) else ()) / size)


def ratio(name: str) -> Any:
    w = weights_of()[name]
    if w.ndim < 2:
        return 0.1 * max(math.sqrt(float((w * w).sum())), 1e-3)
    return 0.1 * np.maximum(np.sqrt((w * w).sum(1)), 1e-3)


CASES: dict[str, tuple[Policy, Callable[[str, np.ndarray], np.ndarray]]] = {
    "value": (by_value(0.3), lambda _, g: g.clip(-0.3, 0.3)),
    "one side": (by_value(max=0.1), lambda _, g: g.clip(None, 0.1)),
    "tanh": (tanh(0.3), lambda _, g: 0.3 * np.tanh(g / 0.3)),
    "unit": (by_norm(0.3, scope="unit"), lambda _, g: units(g, 0.3)),
    "column": (by_norm(0.3, scope="unit", axis=1), lambda _, g: units(g, 0.3, 1)),
    "agc": (agc(0.1), lambda name, g: units(g, ratio(name))),
}


@pytest.mark.parametrize("name", CASES)
def test_each_sample_is_clipped_by_itself(name: str) -> None:
    policy, alone = CASES[name]
    rows = drawn()
    before = {key: x.copy() for key, x in rows.items()}
    grads, result = per_sample(rows, policy, "sum", weights=weights_of())
    parts = {key: np.stack([alone(key, g) for g in x]) for key, x in rows.items()}
    for key, part in parts.items():
        assert_allclose(grads[key], part.sum(0), rtol=1e-12, atol=1e-14)
        assert (rows[key] == before[key]).all()
    norms = [
        np.sqrt(sum((x.reshape(6, -1) ** 2).sum(1) for key, x in each.items() if x.size))
        for each in (rows, parts)
    ]
    assert_allclose(result.sample_norms, norms[0], rtol=1e-12)
    assert_allclose(result.sample_coef, norms[1] / norms[0], rtol=1e-12)
    changed = [any((parts[k][i] != rows[k][i]).any() for k in rows) for i in range(6)]
    assert int(result.clipped) == sum(changed) > 0


def test_a_part_by_value_a_part_by_norm_and_a_part_as_it_is() -> None:
    rows = drawn()
    policy = by_name({"w": by_value(0.3), "b": psac(1.0, r=0.5), "*": None})
    grads, _ = per_sample(rows, policy, "mean")
    assert_allclose(grads["w"], rows["w"].clip(-0.3, 0.3).mean(0), rtol=1e-12)
    sizes = np.linalg.norm(rows["b"], axis=1)
    factors = 1 / (sizes + 0.5 / (sizes + 0.5))
    assert_allclose(grads["b"], (rows["b"] * factors[:, None]).mean(0), rtol=1e-12)
    assert_allclose(grads["scale"], rows["scale"].mean(0), rtol=1e-12)


def test_a_sample_with_nan_counts_as_zero() -> None:
    rows = drawn()
    rows["b"][2, 0] = np.nan
    others = np.arange(6) != 2
    grads, result = per_sample(rows, by_value(0.3), "sum")
    assert_allclose(grads["w"], rows["w"][others].clip(-0.3, 0.3).sum(0), rtol=1e-12)
    assert result.sample_coef[2] == 0
    assert result.skipped.tolist() == (~others).tolist()


def test_values_whose_squares_leave_float64_are_clipped_in_units() -> None:
    rows = [np.asarray([[[3e200, 4e200], [3e-200, 4e-200]]])]
    grads, _ = per_sample(rows, by_norm(1.0, scope="unit"), "sum")
    assert_allclose(grads[0], [[0.6, 0.8], [3e-200, 4e-200]], rtol=1e-12)


def test_an_empty_batch_gives_zeros() -> None:
    for policy in (by_value(1.0), agc()):
        grads, result = per_sample(drawn(0), policy, weights=weights_of())
        assert all(not grads[name].any() for name in SHAPES)
        assert result.clipped == 0


@pytest.mark.parametrize("wrong", [[np.ones((2, 2))], {"other": np.ones(3)}, []])
def test_weights_that_are_not_the_parameters_are_refused(wrong: Any) -> None:
    with pytest.raises(PolicyError, match=r"weights\[0\].shape="):
        per_sample([np.ones((4, 3))], agc(), weights=wrong)
