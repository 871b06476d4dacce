"""The 2-norms of a tree: small arrays are added in float64, and large ones where it is needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradclip.jax.leaves import Leaves
from gradclip.jax.norms import two_norms

SMALL, LARGE = 2048, 2049
"""The largest array that is added in float64, and the smallest that is not."""


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_each_norm_stands_in_its_place(kind: jnp.dtype) -> None:
    scales = {LARGE: 1e30, 7: 1.0, LARGE + 1: 1.0, SMALL: 1e-30, 3 * LARGE: 1e-30, 1: 5.0}
    arrays = [
        jnp.asarray(np.random.default_rng(size).standard_normal(size) * scale, kind)
        for size, scale in scales.items()
    ]
    found = np.asarray(jax.jit(two_norms)(arrays), np.float64)
    want = [float(np.linalg.norm(np.asarray(x, np.float64))) for x in arrays]
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(SMALL,) * 20, (0, 3)])
def test_small_arrays_take_no_branch(sizes: tuple[int, ...]) -> None:
    arrays = [jnp.ones(size) for size in sizes]
    assert "case" not in jax.jit(two_norms).lower(arrays).as_text()
    np.testing.assert_allclose(two_norms(arrays), np.sqrt(sizes), rtol=1e-6)


def test_a_large_array_takes_one() -> None:
    assert "case" in jax.jit(two_norms).lower([jnp.ones(LARGE)]).as_text()


def test_a_factor_over_one_takes_no_finite_value_to_inf() -> None:
    leaves = Leaves(("weight",), [jnp.asarray([3e38, -3e38, 1.0, jnp.inf])])
    leaves.saturate()
    leaves.scale(jnp.asarray(2.0))
    most = np.finfo(np.float32).max
    np.testing.assert_array_equal(leaves.leaves[0], [most, -most, 2.0, np.inf])
