"""Find the shared library, load it once per process, and report whether it works."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .buffers import CBuffers

ABI_VERSION = 5
OFF = ("off", "0", "false", "no")
NAMES = ("gradclip_native.so", "gradclip_native.dll", "gradclip_native.dylib")


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """The state of the C kernel in this process.

    Attributes:
        available: whether the kernel can be called.
        isa: the instruction set of the loops: ``"avx512"``, ``"avx2"``, ``"baseline"``, or
            ``"none"`` without the kernel.
        reason: the reason why the kernel is not available; empty if it is available.
        library: the path of the library that was loaded or that failed to load; None if no
            library was found.
    """

    available: bool
    isa: str
    reason: str
    library: str | None


def status() -> KernelStatus:
    """Return whether the C kernel is in use, with its file and its instruction set.

    The answer is the same for the whole process. ``GRADCLIP_KERNEL=off`` in the environment turns
    the kernel off.

    Example:
        >>> status().isa in {"avx512", "avx2", "baseline", "none"}
        True
    """
    return load()[1]


@functools.cache
def load() -> tuple[ctypes.CDLL | None, KernelStatus]:
    """Return the library, ready to call, or None, and the status."""
    setting = os.environ.get("GRADCLIP_KERNEL", "")
    if setting.strip().lower() in OFF:
        return None, _missing(f"turned off by GRADCLIP_KERNEL={setting}")
    path = find()
    if path is None:
        return None, _missing(
            "gradclip_native is not installed: there was no C compiler when gradclip was "
            "installed, or it runs from a source tree. Install a C compiler, then gradclip again."
        )
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
        version = library.gradclip_abi_version()
    except (OSError, AttributeError) as error:
        return None, _missing(f"could not load {path}: {error}", path)
    if version != ABI_VERSION:
        return None, _missing(
            f"{path} has ABI version {version}, gradclip needs {ABI_VERSION}: reinstall gradclip",
            path,
        )
    isa = library.gradclip_isa().decode("ascii")
    return library, KernelStatus(True, isa, "", str(path))


@functools.cache
def load_holding_the_lock() -> ctypes.PyDLL | None:
    """Return the library for calls that hold Python's lock and may raise Python's errors."""
    path = load()[1].library
    if load()[0] is None or path is None:
        return None
    library = ctypes.PyDLL(path)
    _declare(library)
    return library


def find() -> Path | None:
    """Return the library's path; in an editable install the library is not beside the sources."""
    for folder in sys.modules[__name__.rpartition(".")[0]].__path__:
        for name in NAMES:
            path = Path(folder) / name
            if path.is_file():
                return path
    return None


def _missing(reason: str, path: Path | None = None) -> KernelStatus:
    return KernelStatus(False, "none", reason, None if path is None else str(path))


def _declare(library: ctypes.CDLL | ctypes.PyDLL) -> None:
    """Tell ctypes the types of the arguments and results."""
    address, threads, buffers = ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(CBuffers)
    library.gradclip_abi_version.argtypes = ()
    library.gradclip_abi_version.restype = ctypes.c_int
    library.gradclip_isa.argtypes = ()
    library.gradclip_isa.restype = ctypes.c_char_p
    library.gradclip_norm2.argtypes = (buffers, threads, address)
    library.gradclip_maxabs.argtypes = (buffers, threads, address)
    library.gradclip_scale.argtypes = (buffers, address, threads)
    double = ctypes.c_double
    library.gradclip_scale_all.argtypes = (buffers, double, threads)
    library.gradclip_clamp.argtypes = (buffers, double, double, threads, address)
    library.gradclip_norms_of_sum.argtypes = (buffers, address, threads, address)
    library.gradclip_scale_sum.argtypes = (buffers, address, address, double, threads, address)
    count = ctypes.c_int64
    library.gradclip_gather.argtypes = (address, address, count, *[address] * 3)
    rule = (ctypes.c_int, double, double, threads)
    library.gradclip_clip.argtypes = (address, address, count, *rule, address)
    between = (double, double, threads)
    library.gradclip_clip_values.argtypes = (address, address, count, *between, address, address)
