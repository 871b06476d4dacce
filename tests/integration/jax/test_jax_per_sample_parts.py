"""gradclip.jax.per_sample by value and by unit, beside NumPy's: jitted, and in micro-batches."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import gradclip.numpy
from gradclip import agc, auto_s, by_name, by_norm, by_value, per_layer, psac, tanh
from gradclip.jax import per_sample

POLICIES = {
    "value": by_value(0.3),
    "a table": by_name({"v": by_value([0.1, 0.2, 0.3]), "*": by_value(0.3)}),
    "tanh": tanh(0.3),
    "unit": by_norm(0.3, scope="unit"),
    "rows": by_norm(0.3, scope="unit", axis=0),
    "agc": agc(0.1),
    "per layer": per_layer(1.0),
    "auto-s": auto_s(1.0),
    "psac": psac(1.0, r=0.5),
    "by name": by_name({"w": by_value(0.1), "*": psac(1.0, scope="tensor")}),
}


def loss(params: Any, w: Any, v: Any) -> Any:
    """A loss whose gradient is its input."""
    return jnp.sum(params["w"] * w) + jnp.sum(params["v"] * v)


def drawn() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    rows = {"w": rng.normal(size=(7, 4, 2)), "v": rng.normal(size=(7, 3))}
    rows["w"][3] *= 100
    return rows, {"w": rng.normal(size=(4, 2)), "v": rng.normal(size=3)}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("microbatch", [None, 3])
def test_it_does_what_numpy_does(name: str, microbatch: int | None) -> None:
    rows, weights = drawn()
    policy: Any = POLICIES[name]
    # A unit is a column here, and a row there.
    plain = by_norm(0.3, scope="unit", axis=1) if name == "unit" else policy
    plain = agc(0.1, axis=1) if name == "agc" else plain
    want, told = gradclip.numpy.per_sample(rows, plain, "mean", weights=weights)
    with jax.enable_x64(True):
        function = jax.jit(per_sample(loss, policy, microbatch=microbatch))
        grads, result = function(weights, rows["w"], rows["v"])
    for key in rows:
        assert_allclose(grads[key], want[key], rtol=1e-12, atol=1e-15)
    assert_allclose(result.sample_coef, told.sample_coef, rtol=1e-12)
    assert_allclose(result.sample_norms, told.sample_norms, rtol=1e-12)
    assert int(result.clipped) == int(told.clipped) > 0


def test_without_x64_values_stay_within_the_limit() -> None:
    rows, weights = drawn()
    narrow = {key: x.astype(np.float32) for key, x in rows.items()}
    params = {key: x.astype(np.float32) for key, x in weights.items()}
    grads, _ = per_sample(loss, by_value(0.3), reduction="sum")(
        params, narrow["w"][:1], narrow["v"][:1]
    )
    for key, grad in grads.items():
        found = np.asarray(grad)
        assert found.dtype == np.float32
        assert (np.abs(found.astype(np.float64)) <= 0.3).all()
        assert_allclose(found, narrow[key][0].clip(-0.3, 0.3), rtol=1e-6)


def test_a_step_writes_each_sample_s_gradient_once() -> None:
    """XLA wrote the gradients of a matrix in two orders of axes, and then copied them."""
    batch, shapes = 8, ((24, 40), (40, 16))

    def two_layers(weights: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(x @ weights[0]) @ weights[1])

    weights = [jnp.ones(shape) for shape in shapes]
    function = jax.jit(per_sample(two_layers, "norm:1.0"))
    text = str(function.lower(weights, jnp.ones((batch, 24))).compile().as_text())
    # What runs at every step: the insides of fused operations and loops stand before the entry.
    entry = text[text.index("\nENTRY ") :]
    written = re.findall(r"= f32\[([\d,]+)\]\S* (?!parameter|bitcast|get-tuple)[\w-]+\(", entry)
    sizes = [math.prod(map(int, shape.split(","))) for shape in written]
    for shape in shapes:
        assert sizes.count(batch * math.prod(shape)) == 1, sizes
