"""A whole step in one call of the kernel: find the memory, measure, decide, scale or clamp."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

import numpy as np

from .binding import Floats
from .buffers import CBuffers
from .exchange import describe_function, items
from .library import load, load_holding_the_lock

__all__ = ["Step", "clip", "clip_values"]


class _Host(ctypes.Structure):
    """`gradclip_host` of gradclip.h."""

    _fields_ = (
        ("describe", ctypes.c_void_p),
        ("unlock", ctypes.c_void_p),
        ("lock", ctypes.c_void_p),
    )


_DOUBLES, _POINTER = 3, ctypes.sizeof(ctypes.c_void_p)
"""The numbers of `gradclip_step`, and the bytes of an address."""


class Step:
    """`gradclip_step` of gradclip.h, with the arrays behind it, and the tensors that it is of.

    Attributes:
        total: the norm of all tensors together, before.
        factor: what all values were multiplied by.
        has_double: whether a tensor holds float64.
    """

    __slots__ = ("_memory", "_tensors", "factor", "has_double", "total")

    def __init__(self, memory: ctypes.Array[ctypes.c_double], tensors: tuple[object, ...]) -> None:
        self.total: float = memory[0]
        self.factor: float = memory[1]
        self.has_double: bool = memory[2] != 0
        self._memory, self._tensors = memory, tensors

    @property
    def norms(self) -> Floats:
        """The norm of each tensor, before; shape (tensors,)."""
        return np.frombuffer(memoryview(self._memory), np.float64, len(self._tensors), 8 * _DOUBLES)

    def scale(self, factor: float, threads: int) -> None:
        """Multiply the tensors, which must lie where they lay, by one more factor, in place."""
        library, n = load()[0], len(self._tensors)
        assert library is not None
        sizes = ctypes.addressof(self._memory) + 8 * (_DOUBLES + n)
        pointers = sizes + 8 * n
        buffers = CBuffers(pointers, sizes, pointers + _POINTER * n, n)
        if library.gradclip_scale_all(buffers, factor, threads) != 0:
            raise MemoryError(f"no memory for the tasks of {n} tensors")


def clip(
    tensors: Sequence[object],
    kind: type,
    order: float,
    limit: float = math.inf,
    eps: float = 0.0,
    threads: int = 1,
) -> Step | None:
    """Clip the norm of all tensors together, in place.

    ``x`` if ``total + eps <= limit``, else ``x * (limit / (total + eps))``

    Args:
        tensors: tensors of exactly the type `kind`, or of types that keep its layout; mutated.
        kind: the type of the tensors.
        order: 2 or inf.
        limit: the largest norm that stays as it is; inf only measures.
        eps: what is added to the norm before it is compared.
        threads: the largest number of threads, from 1 to 256.

    Returns:
        What was done; None, with nothing changed, if `gather` cannot read the tensors, or if the
        largest norm is not between 1e-140 and 1e140, where the squares of norms are exact enough.
    """
    library, host = load_holding_the_lock(), _host(kind)
    if library is None or host is None:
        return None
    objects = tuple(tensors)
    memory = _room(len(objects))
    code = 2 if order == 2.0 else 0
    try:
        status = library.gradclip_clip(
            host[1], items(objects), len(objects), code, limit, eps, threads, memory
        )
    except (BufferError, RuntimeError):  # The library refuses a sparse tensor, for example.
        return None
    return Step(memory, objects) if status == 0 else None


def clip_values(
    tensors: Sequence[object], kind: type, lo: float, hi: float, threads: int = 1
) -> tuple[Step, Floats] | None:
    """Clamp every value of all tensors, in place, if all of them are finite.

    ``x = min(max(x, lo), hi)``

    Args:
        tensors: tensors of exactly the type `kind`, or of types that keep its layout; mutated.
        kind: the type of the tensors.
        lo: the lower bound, as in `clamp`.
        hi: the upper bound, >= lo.
        threads: the largest number of threads, from 1 to 256.

    Returns:
        What was measured before, and what `clamp` returns; None, with nothing changed, if `gather`
        cannot read the tensors, if a norm is neither 0 nor between 1e-75 and 1e75 or all are 0, or
        if a finite bound is beyond the values of a dtype.
    """
    library, host = load_holding_the_lock(), _host(kind)
    if library is None or host is None:
        return None
    objects = tuple(tensors)
    n = len(objects)
    memory, stats = _room(n), np.empty((n, 3))
    at = stats.__array_interface__["data"][0]
    try:
        status = library.gradclip_clip_values(
            host[1], items(objects), n, lo, hi, threads, memory, at
        )
    except (BufferError, RuntimeError):  # See `clip`.
        return None
    return (Step(memory, objects), stats) if status == 0 else None


def _room(n: int) -> ctypes.Array[ctypes.c_double]:
    """Return the memory for `gradclip_step` and for the arrays behind it."""
    return (ctypes.c_double * (_DOUBLES + 3 * n + n // 8 + 1))()


@functools.cache
def _host(kind: type) -> tuple[_Host, int] | None:
    """Return how to describe an object of a type and to let go of Python's lock; its address."""
    describe = describe_function(kind)
    if describe is None:
        return None
    python = ctypes.pythonapi
    unlock, lock = (
        ctypes.cast(function, ctypes.c_void_p).value
        for function in (python.PyEval_SaveThread, python.PyEval_RestoreThread)
    )
    host = _Host(describe, unlock, lock)
    return host, ctypes.addressof(host)
