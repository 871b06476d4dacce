"""The kernel's calls over buffers. They release the GIL, and depend only on the data."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from .buffers import Buffers, DType
from .library import load, status

BAD_BUFFER, BAD_BOUNDS, NO_MEMORY = 1, 2, 3
MOST_THREADS = 256

Floats = npt.NDArray[np.float64]


def available() -> bool:
    """Return whether the C kernel can be called; :func:`status` has the reason if not."""
    return load()[0] is not None


def norm2(buffers: Buffers, threads: int = 0) -> Floats:
    """Measure the 2-norm of each buffer.

    ``norm = sqrt(sum(x**2))``

    Args:
        buffers: the memory to measure; not changed.
        threads: the largest number of threads; 0 takes all that this process may use.

    Returns:
        ``(n,)`` float64; inf if an element is inf, NaN if one is NaN.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: a size is negative, a dtype unknown, or an address 0 with a size > 0.

    Numerics: the sums are float64, and compensated for float64 data. Where squares overflow or
    underflow, the kernel scales the data and measures again, so that a finite norm is never inf
    and a non-zero norm is never 0.

    Example:
        >>> import numpy as np
        >>> x = np.array([3e200, 4e200])
        >>> if available():
        ...     norm = norm2(Buffers.of([x.ctypes.data], [x.size], [DType.FLOAT64]))
        ...     assert np.isclose(norm[0], 5e200)
    """
    out = np.empty(len(buffers))
    code = the_library().gradclip_norm2(buffers.c, checked_threads(threads), address_of(out))
    check(code, buffers)
    return out


def maxabs(buffers: Buffers, threads: int = 0) -> Floats:
    """Measure the largest magnitude of each buffer.

    ``norm = max(|x|)``

    Args:
        buffers: the memory to measure; not changed.
        threads: the largest number of threads; 0 takes all that this process may use.

    Returns:
        ``(n,)`` float64; NaN if an element is NaN, 0 for an empty buffer.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: a size is negative, a dtype unknown, or an address 0 with a size > 0.
    """
    out = np.empty(len(buffers))
    code = the_library().gradclip_maxabs(buffers.c, checked_threads(threads), address_of(out))
    check(code, buffers)
    return out


def scale(buffers: Buffers, factors: float | Floats, threads: int = 0) -> None:
    """Multiply each buffer by its factor, in place.

    ``x = round(x * factor)``

    Args:
        buffers: the memory to scale; changed in place.
        factors: one factor for all buffers, or ``(n,)`` float64, one for each. A buffer whose
            factor is exactly 1 is neither read nor written.
        threads: the largest number of threads; 0 takes all that this process may use.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: ``factors`` has another shape, or a buffer is not valid; nothing changed.

    Numerics: the product is taken in float64 and rounded to nearest even. For 16-bit dtypes it is
    taken in float32 if the factor is a normal float32. NaN stays NaN.
    """
    n = len(buffers)
    if isinstance(factors, float) or np.ndim(factors) == 0:
        check(
            the_library().gradclip_scale_all(buffers.c, factors, checked_threads(threads)), buffers
        )
        return
    each = np.ascontiguousarray(factors, np.float64)
    if each.shape != (n,):
        raise ValueError(
            f"factors must be one number or ({n},), one a buffer; got shape {each.shape}"
        )
    code = the_library().gradclip_scale(buffers.c, address_of(each), checked_threads(threads))
    check(code, buffers)


def clamp(buffers: Buffers, lo: float, hi: float, threads: int = 0) -> Floats:
    """Clamp every element, in place, and measure the values before and after.

    ``x = min(max(x, lo), hi)``

    Args:
        buffers: the memory to clamp; changed in place, but memory inside the bounds is not written.
        lo: the lower bound, rounded to each buffer's dtype before it is compared.
        hi: the upper bound, >= lo; rounded in the same way.
        threads: the largest number of threads; 0 takes all that this process may use.

    Returns:
        ``(n, 3)`` float64: sum of squares before, sum of squares after, and the dot product of
        before and after. The sums are not scaled, so that float64 data over 1e154 overflows.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: ``lo > hi``, a bound is NaN, or a buffer is not valid; nothing changed.

    Numerics: NaN stays NaN; a value inside the bounds keeps its bits, -0.0 included.
    """
    if not lo <= hi:
        raise ValueError(f"clamp needs lo <= hi, got lo={lo!r}, hi={hi!r}")
    out = np.empty((len(buffers), 3))
    code = the_library().gradclip_clamp(
        buffers.c, lo, hi, checked_threads(threads), address_of(out)
    )
    check(code, buffers)
    return out


def the_library() -> ctypes.CDLL:
    """Return the kernel, which must be available."""
    library = load()[0]
    if library is None:
        raise RuntimeError(f"the C kernel is not available: {status().reason}")
    return library


def address_of(array: npt.NDArray[Any]) -> int:
    """Return the address of an array's memory: `array.ctypes.data`, at half the cost."""
    return array.__array_interface__["data"][0]


def checked_threads(threads: int) -> int:
    """Return how many threads a call may take; 0 stands for all."""
    if threads < 0:
        raise ValueError(f"threads must be >= 0 (0: all available), got {threads}")
    return min(threads or _all_threads(), MOST_THREADS)


def _all_threads() -> int:
    """Return the number of cores for this process; OMP_NUM_THREADS may lower it, as in torch."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Only Linux has this function.
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else cores


def check(code: int, buffers: Buffers) -> None:
    """Raise the error that a status stands for."""
    if code == 0:
        return
    if code == NO_MEMORY:
        raise MemoryError(f"no memory for the tasks of {len(buffers)} buffers")
    if code == BAD_BUFFER:
        bad = (
            (buffers.sizes < 0)
            | (buffers.dtypes >= len(DType))
            | ((buffers.pointers == 0) & (buffers.sizes > 0))
        )
        if not bad.any():
            raise ValueError("sums are only of float32 buffers, each with an address")
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"buffer {i} is not valid: address {int(buffers.pointers[i]):#x}, "
            f"size {int(buffers.sizes[i])}, dtype {int(buffers.dtypes[i])}; needs size >= 0, "
            f"a DType, and an address unless it is empty"
        )
    raise RuntimeError(f"the C kernel returned status {code}")
