"""The kernel's input: addresses, sizes and dtypes of dense CPU memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

import numpy as np
import numpy.typing as npt


class DType(IntEnum):
    """The element types that the kernel reads, with the codes of ``enum gradclip_dtype``."""

    FLOAT32 = 0
    FLOAT64 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def itemsize(self) -> int:
        """The number of bytes in one element."""
        return (4, 8, 2, 2)[self]


class CBuffers(ctypes.Structure):
    """``gradclip_buffers`` of gradclip.h, with addresses held as integers."""

    _fields_ = (
        ("pointers", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("dtypes", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Buffers:
    """The addresses, sizes and dtypes of dense buffers in CPU memory.

    This object does not own the memory. The owner must keep the memory alive, and must not resize
    it, until the last call with this object has returned. The kernel cannot check an address: a
    wrong address is undefined behaviour, as in C.

    Attributes:
        c: the same as C's structure.

    Args:
        pointers: ``(n,)`` uint64, the address of each buffer's first element, aligned to the
            element; may be 0 for a buffer of size 0.
        sizes: ``(n,)`` int64, the number of elements (not bytes) in each buffer, >= 0.
        dtypes: ``(n,)`` uint8, a :class:`DType` for each buffer.

    Raises:
        TypeError: an array has another dtype.
        ValueError: the arrays are not one-dimensional, contiguous and of the same length.

    Example:
        >>> import numpy as np
        >>> x = np.array([3.0, 4.0])
        >>> len(Buffers.of([x.ctypes.data], [x.size], [DType.FLOAT64]))
        1
    """

    pointers: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    dtypes: npt.NDArray[np.uint8]
    c: CBuffers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.pointers)
        for name, array, dtype in (
            ("pointers", self.pointers, np.uint64),
            ("sizes", self.sizes, np.int64),
            ("dtypes", self.dtypes, np.uint8),
        ):
            if array.dtype != dtype:
                raise TypeError(f"{name} must be {dtype.__name__}, got {array.dtype}")
            if array.ndim != 1 or len(array) != n or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name} must be one-dimensional, contiguous and as long as pointers ({n}), "
                    f"got shape {array.shape}, strides {array.strides}"
                )
        arrays = (self.pointers, self.sizes, self.dtypes)
        addresses = (array.__array_interface__["data"][0] for array in arrays)
        object.__setattr__(self, "c", CBuffers(*addresses, n))

    @classmethod
    def blank(cls, n: int) -> Self:
        """Return n buffers in one piece of memory, for C to fill: the arrays hold anything."""
        memory = np.empty(2 * n + n // 8 + 1, np.uint64)
        start = memory.__array_interface__["data"][0]
        self = object.__new__(cls)
        put = object.__setattr__
        put(self, "pointers", memory[:n])
        put(self, "sizes", memory[n : 2 * n].view(np.int64))
        put(self, "dtypes", memory[2 * n :].view(np.uint8)[:n])
        put(self, "c", CBuffers(start, start + 8 * n, start + 16 * n, n))
        return self

    @classmethod
    def of(cls, pointers: Iterable[int], sizes: Iterable[int], dtypes: Iterable[int]) -> Self:
        """Return buffers from Python sequences, such as ``[t.data_ptr() for t in tensors]``."""
        return cls(
            np.fromiter(pointers, np.uint64),
            np.fromiter(sizes, np.int64),
            np.fromiter(dtypes, np.uint8),
        )

    def __len__(self) -> int:
        return len(self.pointers)
