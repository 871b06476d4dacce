"""The kernel's sums of two float32 buffers, against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from gradclip import kernel
from gradclip.kernel import Buffers, DType

pytestmark = pytest.mark.skipif(not kernel.available(), reason="needs the C kernel")

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1025, 65535, 65537, 140_000]
Singles = npt.NDArray[np.float32]


def drawn(size: int, seed: int) -> Singles:
    return np.random.default_rng([size, seed]).standard_normal(size).astype(np.float32)


def buffers_of(arrays: list[Singles]) -> Buffers:
    addresses = [a.ctypes.data if a.size else 0 for a in arrays]
    return Buffers.of(addresses, [a.size for a in arrays], [DType.FLOAT32] * len(arrays))


def addresses(arrays: list[Singles]) -> npt.NDArray[np.uint64]:
    return buffers_of(arrays).pointers


def sum_of(products: npt.NDArray[np.float64]) -> float:
    return math.fsum(products.tolist())


@pytest.mark.parametrize("factor", [1.0, 0.3, 0.0])
def test_sums_of_all_sizes_at_once(factor: float) -> None:
    x, y = [drawn(n, 1) for n in SIZES], [drawn(n, 2) for n in SIZES]
    rest = [np.empty_like(each) for each in x]
    before = [each.copy() for each in x]
    norms = kernel.norms_of_sum(buffers_of(x), addresses(y), 2)
    stats = kernel.scale_sum(buffers_of(x), addresses(y), addresses(rest), factor, 2)
    for i, (old, other) in enumerate(zip(before, y, strict=True)):
        total = old + other
        scaled = (total.astype(np.float64) * factor).astype(np.float32)
        np.testing.assert_array_equal(x[i], scaled)
        np.testing.assert_array_equal(rest[i], total - scaled)
        raw, wide, cut = (a.astype(np.float64) for a in (old, total, scaled))
        np.testing.assert_allclose(norms[i], [sum_of(raw**2), sum_of(wide**2)], rtol=1e-13)
        want = [sum_of(raw**2), sum_of(cut**2), sum_of(raw * cut)]
        np.testing.assert_allclose(stats[i], want, rtol=1e-13, atol=1e-9)


@pytest.mark.parametrize("value", [1e-45, 1e-39, 1e-20, 1e25, 1e38])
def test_small_and_large_values_keep_their_norms(value: float) -> None:
    x, y = np.full(100, value, np.float32), np.full(100, value, np.float32)
    twice = (x + y).astype(np.float64)
    norms = kernel.norms_of_sum(buffers_of([x]), addresses([y]))
    want = [sum_of(x.astype(np.float64) ** 2), sum_of(twice**2)]
    np.testing.assert_allclose(norms[0], want, rtol=1e-14)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 8, 1024, 70_000])
def test_what_is_not_finite_shows(bad: float, where: int) -> None:
    for of_x in (True, False):
        x, y = drawn(70_001, 1), drawn(70_001, 2)
        (x if of_x else y)[where] = bad
        norms = kernel.norms_of_sum(buffers_of([x]), addresses([y]), 2)
        assert np.isfinite(norms[0, 0]) != of_x
        assert not np.isfinite(norms[0, 1])


def test_a_sum_beyond_float32_is_infinite() -> None:
    x = np.full(9, 3e38, np.float32)
    norms = kernel.norms_of_sum(buffers_of([x]), addresses([x]))
    assert np.isfinite(norms[0, 0])
    assert norms[0, 1] == math.inf


def test_threads_do_not_change_a_bit() -> None:
    found = set()
    for threads in (1, 2, 4):
        x, y = [drawn(n, 1) for n in SIZES], [drawn(n, 2) for n in SIZES]
        rest = [np.empty_like(each) for each in x]
        norms = kernel.norms_of_sum(buffers_of(x), addresses(y), threads)
        stats = kernel.scale_sum(buffers_of(x), addresses(y), addresses(rest), 0.7, threads)
        arrays = [norms, stats, *x, *rest]
        found.add(b"".join(array.tobytes() for array in arrays))
    assert len(found) == 1


def test_other_dtypes_and_counts_are_refused_and_nothing_changes() -> None:
    x = np.ones(4)
    double = Buffers.of([x.ctypes.data], [4], [DType.FLOAT64])
    with pytest.raises(ValueError, match="only of float32 buffers"):
        kernel.scale_sum(double, double.pointers, double.pointers, 0.5)
    single = drawn(4, 1)
    good = buffers_of([single])
    with pytest.raises(ValueError, match="only of float32 buffers"):
        kernel.norms_of_sum(good, np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="give 1 addresses as uint64"):
        kernel.norms_of_sum(good, np.zeros(2, np.uint64))
    np.testing.assert_array_equal(x, np.ones(4))
    np.testing.assert_array_equal(single, drawn(4, 1))
