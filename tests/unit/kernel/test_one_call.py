"""A step in one call of the kernel does what its parts do one after the other."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gradclip import kernel
from gradclip.kernel.exchange import items
from gradclip.method.measure import combine

pytestmark = pytest.mark.skipif(not kernel.available(), reason="needs the C kernel")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensors(count: int, size: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64)
    spread = 10.0 ** torch.randint(-3, 3, (count, 1), generator=generator).double()
    return [(row * scale).to(dtype) for row, scale in zip(drawn, spread, strict=True)]


def test_the_items_of_a_tuple_lie_where_c_reads_them() -> None:
    objects = tuple(tensors(3))
    found = (ctypes.c_void_p * 3).from_address(items(objects))
    assert list(found) == [id(each) for each in objects]


@pytest.mark.parametrize(
    "count", [*range(1, 20), 127, 128, 129, 136, 137, 255, 256, 257, 1025, 4100]
)
def test_the_total_is_that_of_numpy_bit_for_bit(count: int) -> None:
    done = kernel.clip(tensors(count, 3), Tensor, 2.0)
    assert done is not None
    assert done.total == float(combine(done.norms, 2.0, np))
    assert done.factor == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [2.0, math.inf])
@pytest.mark.parametrize("size", [5, 70_000])
def test_it_measures_and_scales_as_the_parts_do(
    dtype: torch.dtype, order: float, size: int
) -> None:
    mine, theirs = tensors(3, size, dtype), tensors(3, size, dtype)
    memory = kernel.gather(theirs, Tensor)
    assert memory is not None
    norms = (kernel.norm2 if order == 2.0 else kernel.maxabs)(memory, 2)
    total = float(combine(norms, order, np))
    kernel.scale(memory, 1.5 / (total + 1e-6), 2)
    done = kernel.clip(mine, Tensor, order, 1.5, 1e-6, 2)
    assert done is not None
    assert (done.total, done.factor) == (total, 1.5 / (total + 1e-6))
    assert done.has_double is (dtype == torch.float64)
    np.testing.assert_array_equal(done.norms, norms)
    assert all(map(torch.equal, mine, theirs))


def test_a_norm_at_the_limit_changes_no_bit() -> None:
    values = tensors(4)
    before = [value.clone() for value in values]
    measured = kernel.clip(values, Tensor, 2.0)
    assert measured is not None
    done = kernel.clip(values, Tensor, 2.0, measured.total)
    assert done is not None
    assert done.factor == 1
    assert all(map(torch.equal, values, before))


def test_what_was_measured_can_be_scaled() -> None:
    values = tensors(7)
    before = [value.clone() for value in values]
    done = kernel.clip(values, Tensor, 2.0)
    assert done is not None
    done.scale(0.5, 1)
    assert all(torch.equal(now, was * 0.5) for now, was in zip(values, before, strict=True))


one = torch.ones(4)


@pytest.mark.parametrize(
    "given",
    [
        [],
        [torch.zeros(3)],
        [torch.tensor([math.inf])],
        [one, torch.tensor([math.nan])],
        [torch.tensor([1e200], dtype=torch.float64)],
        [torch.tensor([1e-200], dtype=torch.float64)],
        [one, one],
        [one[:3], one[1:]],
        [torch.ones(4, 4)[:, ::2]],
        [torch.ones(3, dtype=torch.int64)],
        [torch.ones(3, dtype=torch.complex64)],
        [torch.eye(3).to_sparse()],
        [torch.ones(3, device="meta")],
    ],
)
def test_what_it_cannot_do_it_leaves_untouched(given: Sequence[Tensor]) -> None:
    before = [value.clone() for value in given]
    assert kernel.clip(given, Tensor, 2.0, 1e-3) is None
    for now, was in zip(given, before, strict=True):
        if now.device.type != "meta":
            torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 70_000])
def test_it_clamps_as_the_parts_do(dtype: torch.dtype, size: int) -> None:
    mine, theirs = tensors(3, size, dtype), tensors(3, size, dtype)
    memory = kernel.gather(theirs, Tensor)
    assert memory is not None
    norms = kernel.norm2(memory, 2)
    sums = kernel.clamp(memory, -0.5, 0.25, 2)
    done = kernel.clip_values(mine, Tensor, -0.5, 0.25, 2)
    assert done is not None
    step, found = done
    assert step.total == float(combine(norms, 2.0, np))
    np.testing.assert_array_equal(step.norms, norms)
    np.testing.assert_array_equal(found, sums)
    assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e80, 1e-80])
def test_a_clamp_of_unusual_norms_changes_nothing(bad: float) -> None:
    values = [torch.full((9,), 5.0, dtype=torch.float64), torch.tensor([bad], dtype=torch.float64)]
    before = [value.clone() for value in values]
    assert kernel.clip_values(values, Tensor, -1.0, 1.0) is None
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0, equal_nan=True)


def test_a_clamp_to_what_a_dtype_does_not_hold_changes_nothing() -> None:
    for dtype, bound in ((torch.float16, 7e4), (torch.bfloat16, 3.4e38), (torch.float32, 1e39)):
        assert kernel.clip_values([torch.ones(3, dtype=dtype)], Tensor, -1.0, bound) is None
        assert kernel.clip_values([torch.ones(3, dtype=dtype)], Tensor, -bound, 1.0) is None
        assert kernel.clip_values([torch.ones(3, dtype=dtype)], Tensor, -1.0, math.inf) is not None


def test_a_clamp_of_zeros_or_of_nothing_is_left_to_others() -> None:
    assert kernel.clip_values([torch.zeros(3)], Tensor, -1.0, 1.0) is None
    assert kernel.clip_values([], Tensor, -1.0, 1.0) is None
