"""Find the memory of many tensors in one call, through DLPack's C exchange API.

In Python, the address, size and dtype of one tensor cost more time than the sum of a few thousand
values. A library with the exchange API gives the address of a C function that returns all of them.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence

from .buffers import Buffers
from .library import load_holding_the_lock

MAJOR = 1
NAME = b"dlpack_exchange_api"


class _Api(ctypes.Structure):
    """The first fields of DLPackExchangeAPI, which are all that this module reads."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
    )


def gather(tensors: Sequence[object], kind: type) -> Buffers | None:
    """Return the memory of tensors if the kernel can read all of them.

    Args:
        tensors: tensors of exactly the type `kind`, or of types that keep its layout; not mutated.
        kind: the type of the tensors.

    Returns:
        The buffers; None if the type has no exchange API, or if a tensor is not on the CPU, is
        not dense, has a dtype that the kernel does not read, or shares memory with another: they
        may be one, listed twice.
    """
    library, describe = load_holding_the_lock(), describe_function(kind)
    if library is None or describe is None:
        return None
    objects = tuple(tensors)
    found = Buffers.blank(len(objects))
    c = found.c
    try:
        code = library.gradclip_gather(describe, items(objects), c.n, c.pointers, c.sizes, c.dtypes)
    except (BufferError, RuntimeError):  # The library refuses a sparse tensor, for example.
        return None
    return found if code == 0 else None


def items(objects: tuple[object, ...]) -> int:
    """Return the address of a tuple's items: in CPython, they lie behind its fixed part."""
    return id(objects) + tuple.__basicsize__


@functools.cache
def describe_function(kind: type) -> int | None:
    """Return the address of the C function that describes an object of this type, or None."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None or sys.implementation.name != "cpython":  # C reads addresses of objects.
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    api = _Api.from_address(pointer(capsule, NAME))
    return api.tensor_from_object if api.major == MAJOR else None
