"""The C kernel against oracles that use nothing of gradclip: math.fsum and NumPy."""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import kernel
from gradclip.kernel import Buffers, DType

CHUNK = 65536  # elements the kernel cuts big buffers at
BLOCK = 1024  # elements clamp looks at before it writes
SIZES = [0, 1, 7, 15, 16, 17, 1000, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]
EPS = {DType.FLOAT32: 2.0**-23, DType.FLOAT64: 2.0**-52, DType.BFLOAT16: 2.0**-7}
EPS[DType.FLOAT16] = 2.0**-10
# float64 sums are compensated; a chunk of the others takes 4096 plain additions a lane.
RTOL = {d: 4e-16 if d is DType.FLOAT64 else 4096 * 2.0**-53 for d in DType}
STORAGE = {
    DType.FLOAT32: np.float32,
    DType.FLOAT64: np.float64,
    DType.BFLOAT16: np.uint16,
    DType.FLOAT16: np.float16,
}
every_dtype = pytest.mark.parametrize("dtype", list(DType), ids=lambda d: d.name.lower())

Array = npt.NDArray[np.generic]


@pytest.fixture(autouse=True)
def _kernel(request: pytest.FixtureRequest) -> None:
    if kernel.available() or request.node.name.startswith("test_off"):
        return
    reason = f"the C kernel is not built: {kernel.status().reason}"
    if os.environ.get("CI") and shutil.which("gcc"):
        pytest.fail(f"there is a compiler, but {reason}")
    pytest.skip(reason)


# ---- oracle: what the kernel should say, in NumPy and exact sums ---------------------------


def encode(values: npt.ArrayLike, dtype: DType) -> Array:
    """Round float64 values to `dtype`, 16 bits by way of float32; bfloat16 is held as bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype is DType.FLOAT64:
            return np.array(values, np.float64)
        single = np.asarray(values, np.float64).astype(np.float32)
        if dtype is not DType.BFLOAT16:
            return single.astype(STORAGE[dtype])
    bits = single.view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def decode(stored: Array, dtype: DType) -> npt.NDArray[np.float64]:
    """The float64 values that `stored` holds; exact."""
    if dtype is DType.BFLOAT16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return stored.astype(np.float64)


def product(values: npt.NDArray[np.float64], factor: float, dtype: DType) -> Array:
    """What scaling is to give: 16 bits by way of a float32 product."""
    narrow = dtype in (DType.BFLOAT16, DType.FLOAT16)
    tiny, most = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    with np.errstate(over="ignore", invalid="ignore"):
        if narrow and tiny <= abs(factor) <= most:
            return encode(values.astype(np.float32) * np.float32(factor), dtype)
        return encode(values * factor, dtype)


def true_norm(values: npt.NDArray[np.float64]) -> float:
    """The 2-norm, right to an ulp whatever the range."""
    if np.isnan(values).any():
        return math.nan
    most = float(np.abs(values).max(initial=0.0))
    if most in (0.0, math.inf):
        return most
    exponent = max(math.frexp(most)[1], -1000)
    scaled = np.ldexp(values, -exponent)
    return math.ldexp(math.sqrt(math.fsum((scaled * scaled).tolist())), exponent)


def buffers_of(arrays: Sequence[Array], dtypes: Sequence[DType] | DType) -> Buffers:
    each = [dtypes] * len(arrays) if isinstance(dtypes, DType) else dtypes
    return Buffers.of(
        [a.ctypes.data if a.size else 0 for a in arrays], [a.size for a in arrays], each
    )


def bits(array: Array) -> bytes:
    return array.tobytes()


def normal(size: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(size)


# ---- norm2 --------------------------------------------------------------------------------


@every_dtype
def test_norm2_of_all_sizes_at_once(dtype: DType) -> None:
    arrays = [encode(normal(n, n), dtype) for n in SIZES]
    want = [true_norm(decode(a, dtype)) for a in arrays]
    for threads in (0, 1, 2, 4):
        got = kernel.norm2(buffers_of(arrays, dtype), threads)
        np.testing.assert_allclose(got, want, rtol=RTOL[dtype])


def test_norm2_of_mixed_dtypes() -> None:
    dtypes = [DType(i % 4) for i in range(40)]
    arrays = [encode(normal(i * 37, i), d) for i, d in enumerate(dtypes)]
    want = [true_norm(decode(a, d)) for a, d in zip(arrays, dtypes, strict=True)]
    np.testing.assert_allclose(kernel.norm2(buffers_of(arrays, dtypes), 2), want, rtol=1e-14)


@every_dtype
def test_every_bit_pattern_of_16_bits_is_decoded(dtype: DType) -> None:
    if dtype in (DType.FLOAT32, DType.FLOAT64):
        every = encode(np.ldexp(1.0, np.arange(-1074, 1024)), dtype)
    else:
        every = np.arange(65536, dtype=np.uint16).view(STORAGE[dtype])
    singles = [every[i : i + 1] for i in range(every.size)]
    values = np.abs(decode(every, dtype))
    np.testing.assert_array_equal(kernel.maxabs(buffers_of(singles, dtype), 2), values)
    got = kernel.norm2(buffers_of(singles, dtype), 2)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(values))
    np.testing.assert_allclose(got, values, rtol=3e-16)


@every_dtype
@pytest.mark.parametrize("where", [0, 3, CHUNK - 1, CHUNK, CHUNK + 20])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_non_finite_element_shows(dtype: DType, where: int, bad: float) -> None:
    values = normal(CHUNK + 21)
    values[where] = bad
    array = encode(values, dtype)
    want = math.nan if math.isnan(bad) else math.inf
    np.testing.assert_array_equal(kernel.norm2(buffers_of([array], dtype), 2), [want])
    np.testing.assert_array_equal(kernel.maxabs(buffers_of([array], dtype), 2), [want])


@every_dtype
def test_nan_wins_over_inf(dtype: DType) -> None:
    for pair in ([math.nan, math.inf], [math.inf, math.nan]):
        values = np.zeros(2 * CHUNK)
        values[0], values[-1] = pair
        array = encode(values, dtype)  # a name of its own: Buffers only borrows it
        buffers = buffers_of([array], dtype)
        assert math.isnan(kernel.norm2(buffers)[0])
        assert math.isnan(kernel.maxabs(buffers)[0])


@pytest.mark.parametrize(
    ("dtype", "value", "size"),
    [
        (DType.FLOAT32, 1e25, 100),
        (DType.FLOAT32, 3e38, CHUNK + 1),
        (DType.FLOAT32, 1e-30, 100),
        (DType.FLOAT32, 1e-45, 100),
        (DType.FLOAT16, 300.0, 70_000),
        (DType.FLOAT16, 6e-8, 100),
        (DType.BFLOAT16, 1e38, 70_000),
        (DType.BFLOAT16, 1e-40, 100),
        (DType.FLOAT64, 1e200, CHUNK + 1),
        (DType.FLOAT64, -1e300, 100),
        (DType.FLOAT64, 1e-200, CHUNK + 1),
        (DType.FLOAT64, 5e-324, 100),
        (DType.FLOAT64, 1e-310, 3),
        (DType.FLOAT64, 1e-160, 100),
        (DType.FLOAT64, np.finfo(np.float64).max, 1),
    ],
)
def test_no_overflow_and_no_underflow(dtype: DType, value: float, size: int) -> None:
    array = encode(np.full(size, value), dtype)
    want = true_norm(decode(array, dtype))
    assert math.isfinite(want)
    assert want > 0
    beside = encode(normal(50), dtype)  # a neighbour that needs no rescue keeps its own norm
    got = kernel.norm2(buffers_of([beside, array, beside[:0], beside], dtype), 2)
    plain = true_norm(decode(beside, dtype))
    np.testing.assert_allclose(got, [plain, want, 0.0, plain], rtol=RTOL[dtype], atol=5e-324)


def test_huge_and_tiny_float64_together() -> None:
    array = np.array([1e200, 1e-200, -1e200, 5e-324] * 40_000)
    np.testing.assert_allclose(
        kernel.norm2(buffers_of([array], DType.FLOAT64)), [true_norm(array)], rtol=4e-16
    )


def test_a_norm_beyond_float64_is_inf() -> None:
    array = np.full(100, np.finfo(np.float64).max)
    assert kernel.norm2(buffers_of([array], DType.FLOAT64))[0] == math.inf


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(DType.FLOAT32, 1e-12), (DType.FLOAT64, 2 * EPS[DType.FLOAT64])]
)
def test_equal_elements_do_not_drift(dtype: DType, tolerance: float) -> None:
    """Equal terms round the same way each time, which plain summation adds up."""
    array = encode(np.full(60 * CHUNK + 3, 0.1), dtype)
    exact = Fraction(float(decode(array[:1], dtype)[0])) ** 2 * array.size
    norm = Fraction(float(kernel.norm2(buffers_of([array], dtype), 2)[0]))
    assert abs(norm**2 / exact - 1) < Fraction(tolerance)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(DType)),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    repeat=st.sampled_from([1, 3, 50, 3000]),
    start=st.integers(0, 3),
    threads=st.integers(1, 4),
)
def test_norm2_and_maxabs_agree_with_numpy(
    dtype: DType, values: list[float], repeat: int, start: int, threads: int
) -> None:
    array = np.tile(encode(values, dtype), repeat)[start:]  # unaligned for start > 0
    held = decode(array, dtype)
    buffers = buffers_of([array], dtype)
    np.testing.assert_allclose(
        kernel.norm2(buffers, threads), [true_norm(held)], rtol=RTOL[dtype], atol=5e-324
    )
    assert kernel.maxabs(buffers, threads)[0] == np.abs(held).max(initial=0.0)


# ---- scale --------------------------------------------------------------------------------


@every_dtype
def test_scale_rounds_to_nearest(dtype: DType) -> None:
    sizes = [n for n in SIZES if n < 2 * CHUNK]
    arrays = [encode(normal(n, n), dtype) for n in sizes]
    factors = np.linspace(0.1, 2.7, len(arrays))
    want = [product(decode(a, dtype), f, dtype) for a, f in zip(arrays, factors, strict=True)]
    kernel.scale(buffers_of(arrays, dtype), factors, 2)
    for got, expected in zip(arrays, want, strict=True):
        assert bits(got) == bits(expected)


@every_dtype
def test_scale_of_every_16_bit_pattern(dtype: DType) -> None:
    every = np.arange(65536, dtype=np.uint16)
    values = decode(every.view(np.float16), DType.FLOAT16)
    for factor in (0.5, 1 / 3, 3.7e-3, -1.0, 1e5, 1e-9, 1e-41, 1e39, 0.0):
        array = encode(values, dtype)
        held = decode(array, dtype)
        with np.errstate(invalid="ignore"):
            want = decode(product(held, factor, dtype), dtype)
        kernel.scale(buffers_of([array], dtype), factor)
        got = decode(array, dtype)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


@every_dtype
def test_factor_one_leaves_every_bit(dtype: DType) -> None:
    values = normal(70_000)
    values[:4] = [math.nan, math.inf, -0.0, 1e-45]
    array, other = encode(values, dtype), encode(values, dtype)
    array.view(np.uint8)[:8] |= 1  # a NaN with a payload
    array.flags.writeable = False
    before = bits(array)
    kernel.scale(buffers_of([array, other], dtype), np.array([1.0, 0.5]), 2)
    assert bits(array) == before
    assert bits(other) != before


@every_dtype
def test_a_nan_factor_gives_nan(dtype: DType) -> None:
    """With every payload bit set, too: rounding must not carry out of the NaN."""
    full = np.array([-1, 2**63 - 1], np.int64).view(np.float64)
    for factor in (math.nan, *full):
        array = encode([1.0, -2.0, 0.0], dtype)
        kernel.scale(buffers_of([array], dtype), factor)
        assert np.isnan(decode(array, dtype)).all()


def test_factor_one_does_not_touch_memory() -> None:
    """Address 8 is never mapped: a process that reads or writes address 8 ends by a signal."""
    code = (
        "from gradclip.kernel import Buffers, DType, scale\n"
        "scale(Buffers.of([8], [1000], [DType.FLOAT32]), {factor})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = [
        subprocess.run(
            [sys.executable, "-c", code.format(factor=factor)], env=environment, check=False
        ).returncode
        for factor in (1.0, 0.5)
    ]
    assert ended == [0, -signal.SIGSEGV]


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(list(DType)),
    size=st.sampled_from([1, 2, 100, 5000]),
    seed=st.integers(0, 2**32 - 1),
    limit=st.floats(1e-2, 1e2),
    equal=st.booleans(),
)
def test_scaled_to_the_limit_stays_within_it(
    dtype: DType, size: int, seed: int, limit: float, equal: bool
) -> None:
    """Promise 1: the norm after clipping is at most max (1 + 4 eps)."""
    values = np.full(size, normal(1, seed)[0]) if equal else normal(size, seed)
    array = encode(values * 100, dtype)
    norm = float(kernel.norm2(buffers_of([array], dtype))[0])
    limit = min(limit, norm)
    kernel.scale(buffers_of([array], dtype), limit / norm)
    after = true_norm(decode(array, dtype))
    assert after <= limit * (1 + 4 * EPS[dtype])
    if dtype is not DType.FLOAT16:  # subnormals lose digits there
        assert after >= limit * (1 - 4 * EPS[dtype])


@pytest.mark.parametrize("factors", [np.ones(3), np.ones((2, 1)), [1.0]])
def test_wrong_factors_are_refused(factors: npt.NDArray[np.float64]) -> None:
    array = np.ones(4)
    with pytest.raises(ValueError, match="factors must be one number or"):
        kernel.scale(buffers_of([array, array], DType.FLOAT64), factors)


# ---- clamp --------------------------------------------------------------------------------


@every_dtype
def test_clamp_and_its_statistics(dtype: DType) -> None:
    arrays = [encode(normal(n, n), dtype) for n in SIZES]
    lo, hi = (decode(encode([bound], dtype), dtype)[0] for bound in (-0.7, 0.4))
    before = [decode(a, dtype) for a in arrays]
    stats = kernel.clamp(buffers_of(arrays, dtype), -0.7, 0.4, 2)
    for array, old, got in zip(arrays, before, stats, strict=True):
        want = np.clip(old, lo, hi)
        np.testing.assert_array_equal(decode(array, dtype), want)
        sums = [math.fsum(p.tolist()) for p in (old * old, want * want, old * want)]
        np.testing.assert_allclose(got, sums, rtol=1e-13)


@every_dtype
def test_clamp_writes_only_where_something_is_outside(dtype: DType) -> None:
    """A read-only page holds the inside block: a write to it would end the process."""
    itemsize = np.dtype(STORAGE[dtype]).itemsize
    with mmap.mmap(-1, 4 * BLOCK * itemsize) as memory:
        array = np.frombuffer(memory, STORAGE[dtype])
        array[:] = encode(np.full(array.size, 0.5), dtype)
        array[3 * BLOCK] = encode([9.0], dtype)[0]
        code = _protect(array.ctypes.data, 2 * BLOCK * itemsize, read_only=True)
        if code != 0:
            pytest.skip("mprotect is not available")
        try:
            kernel.clamp(buffers_of([array], dtype), -1.0, 1.0)
        finally:
            _protect(array.ctypes.data, 2 * BLOCK * itemsize, read_only=False)
        got = decode(array, dtype)
        del array
    np.testing.assert_array_equal(got, np.where(np.arange(got.size) == 3 * BLOCK, 1.0, 0.5))


def _protect(address: int, size: int, *, read_only: bool) -> int:
    """POSIX mprotect of the whole pages in [address, address + size)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except TypeError:
        return -1
    whole = ctypes.c_size_t(size - size % mmap.PAGESIZE)
    return libc.mprotect(ctypes.c_void_p(address), whole, 1 if read_only else 3)


@every_dtype
def test_clamp_keeps_what_is_inside(dtype: DType) -> None:
    array = encode([-0.0, 0.0, 1.0, math.nan, math.inf, -math.inf], dtype)
    before = bits(array[:4])
    stats = kernel.clamp(buffers_of([array], dtype), 0.0, 1.0)
    assert bits(array[:4]) == before
    np.testing.assert_array_equal(decode(array[4:], dtype), [1.0, 0.0])
    assert np.isnan(stats[0, :2]).all()
    again = bits(array)
    kernel.clamp(buffers_of([array], dtype), 0.0, 1.0)
    assert bits(array) == again


@every_dtype
@pytest.mark.parametrize(
    ("lo", "hi"), [(-0.5, 0.25), (0.0, 1.0), (0.25, 0.5), (-1.0, -0.5), (-math.inf, 0.25)]
)
def test_clamp_around_the_width_of_a_register(dtype: DType, lo: float, hi: float) -> None:
    """Also where integers do not clamp as floats: bounds on one side of 0, and NaN."""
    odd = [-0.0, 0.0, 1e-45, -6e-8, 300.0, -300.0, math.inf, -math.inf]
    for size in range(41):
        values = normal(size, size)
        values[-8:] = odd[: min(size, 8)]
        for bad in (0.0, math.nan):
            if size:
                values[size // 2] = bad
            array = encode(values, dtype)
            before = decode(array, dtype)
            with np.errstate(invalid="ignore"):
                want = np.clip(before, lo, hi)
                sums = [np.sum(p) for p in (before * before, want * want, before * want)]
            stats = kernel.clamp(buffers_of([array], dtype), lo, hi)
            np.testing.assert_array_equal(decode(array, dtype), want)
            np.testing.assert_allclose(stats[0], sums, rtol=1e-13)


@every_dtype
def test_infinite_bounds_change_nothing(dtype: DType) -> None:
    array = encode([math.inf, -math.inf, 3.0, math.nan], dtype)
    before = bits(array)
    kernel.clamp(buffers_of([array], dtype), -math.inf, math.inf)
    assert bits(array) == before


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_wrong_bounds_are_refused(lo: float, hi: float) -> None:
    array = np.array([5.0])
    with pytest.raises(ValueError, match="clamp needs lo <= hi"):
        kernel.clamp(buffers_of([array], DType.FLOAT64), lo, hi)
    assert array[0] == 5.0


# ---- threads, forks, faults ---------------------------------------------------------------


@every_dtype
def test_threads_do_not_change_a_bit(dtype: DType) -> None:
    arrays = [encode(normal(n, n), dtype) for n in [*SIZES, 5 * CHUNK + 1]]
    buffers = buffers_of(arrays, dtype)
    norms = {bits(kernel.norm2(buffers, t)) for t in (1, 2, 3, 4, 1, 2) for _ in range(5)}
    assert len(norms) == 1
    results = set()
    for threads in (1, 2, 4):
        copies = [a.copy() for a in arrays]
        stats = kernel.clamp(buffers_of(copies, dtype), -1.0, 0.5, threads)
        kernel.scale(buffers_of(copies, dtype), 0.3, threads)
        results.add(bits(stats) + b"".join(bits(c) for c in copies))
    assert len(results) == 1


def test_many_tiny_buffers() -> None:
    flat = normal(5000 * 3).astype(np.float32)
    arrays = list(flat.reshape(5000, 3))
    want = np.sqrt((flat.astype(np.float64).reshape(5000, 3) ** 2).sum(axis=1))
    for threads in (1, 2):
        got = kernel.norm2(buffers_of(arrays, DType.FLOAT32), threads)
        np.testing.assert_allclose(got, want, rtol=4e-16)


def test_calls_from_several_threads_at_once() -> None:
    arrays = [normal(4 * CHUNK + i, i) for i in range(6)]
    want = [bits(kernel.norm2(buffers_of([a], DType.FLOAT64), 1)) for a in arrays]
    wrong: list[int] = []

    def measure(i: int) -> None:
        buffers = buffers_of([arrays[i]], DType.FLOAT64)
        for _ in range(50):
            if bits(kernel.norm2(buffers, 2)) != want[i]:
                wrong.append(i)

    threads = [threading.Thread(target=measure, args=(i,)) for i in range(len(arrays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_call_too() -> None:
    array = normal(8 * CHUNK)
    want = bits(kernel.norm2(buffers_of([array], DType.FLOAT64), 2))  # the pool now exists
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        for _ in range(20):
            sender.send_bytes(bits(kernel.norm2(buffers_of([array], DType.FLOAT64), 2)))

    process = context.Process(target=child)
    process.start()
    for _ in range(20):
        assert receiver.poll(20), "the child hangs"
        assert receiver.recv_bytes() == want
    process.join(20)
    assert process.exitcode == 0
    assert bits(kernel.norm2(buffers_of([array], DType.FLOAT64), 2)) == want


def test_subnormals_count_even_if_the_host_flushes_them() -> None:
    torch = pytest.importorskip("torch")
    array = np.full(100, 1e-42, np.float32)
    want = true_norm(array.astype(np.float64))
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        got = kernel.norm2(buffers_of([array], DType.FLOAT32), 1)
        flushes_still = float(torch.tensor([1e-42]).mul(1.0).sum()) == 0.0
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_allclose(got, want, rtol=1e-15)
    assert flushes_still, "the kernel must leave the host's setting as it was"


def test_torch_bfloat16_memory() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()[1:]
    want = (tensor.float() * 0.3).bfloat16()
    buffers = Buffers.of([tensor.data_ptr()], [tensor.numel()], [DType.BFLOAT16])
    norm = float(torch.linalg.vector_norm(tensor.double()))
    assert kernel.norm2(buffers)[0] == pytest.approx(norm, rel=1e-14)
    kernel.scale(buffers, 0.3)
    assert torch.equal(tensor, want)


def test_no_buffers_at_all() -> None:
    none = Buffers.of([], [], [])
    assert kernel.norm2(none).shape == (0,)
    assert kernel.maxabs(none).shape == (0,)
    assert kernel.clamp(none, -1, 1).shape == (0, 3)
    kernel.scale(none, 0.5)


@pytest.mark.parametrize(
    ("pointer", "size", "dtype"),
    [(0, 1, 0), (64, -1, 0), (64, 1, 4)],
    ids=["null", "size", "dtype"],
)
def test_a_buffer_that_is_not_valid_is_refused_before_any_is_touched(
    pointer: int, size: int, dtype: int
) -> None:
    array = np.array([5.0])
    buffers = Buffers.of([array.ctypes.data, pointer], [1, size], [DType.FLOAT64, dtype])
    calls = (
        lambda: kernel.norm2(buffers),
        lambda: kernel.maxabs(buffers),
        lambda: kernel.scale(buffers, 0.5),
        lambda: kernel.clamp(buffers, -1, 1),
    )
    for call in calls:
        with pytest.raises(ValueError, match="buffer 1 is not valid"):
            call()
    assert array[0] == 5.0


def test_arrays_of_another_dtype_or_shape_are_refused() -> None:
    one = np.ones(1)
    good = Buffers.of([1], [0], [0])
    with pytest.raises(TypeError, match="sizes must be int64, got float64"):
        Buffers(good.pointers, one, good.dtypes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="sizes must be one-dimensional"):
        Buffers(good.pointers, np.zeros(2, np.int64), good.dtypes)
    with pytest.raises(ValueError, match="threads must be >= 0"):
        kernel.norm2(good, threads=-1)


def test_status_of_a_kernel_that_runs() -> None:
    status = kernel.status()
    assert status.available
    assert status.isa in {"avx512", "avx2", "baseline"}
    assert status.reason == ""
    assert status.library is not None
    assert "gradclip_native" in status.library


def test_off_turns_it_off() -> None:
    script = (
        "from gradclip import kernel; s = kernel.status(); print(s.available, s.isa, s.reason)\n"
        "try: kernel.norm2(kernel.Buffers.of([], [], []))\n"
        "except RuntimeError as error: print(error)"
    )
    environment = {**os.environ, "GRADCLIP_KERNEL": "off"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "False none turned off by GRADCLIP_KERNEL=off",
        "the C kernel is not available: turned off by GRADCLIP_KERNEL=off",
    ]
