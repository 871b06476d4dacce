"""The limit beside us: what the memory allows, measured by bare C loops over the same buffers.

A clip that changes nothing must read every byte once. A clip that scales must read every byte,
and, when the norm is known, read and write it once more. No rival and no kernel can do with less.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["LOOP", "Loops", "loops"]

LOOP = "bare C loop"
SOURCE = Path(__file__).with_name("limit.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
# Sums in any order. Not -ffast-math, with which a library takes subnormal numbers from the process.
FLAGS += ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")


class Loops:
    """Bare loops over one buffer of float32.

    Args:
        library: from `limit.c`.
        memory: the buffer; `clip` multiplies it.
    """

    def __init__(self, library: ctypes.CDLL, memory: Tensor) -> None:
        assert memory.dtype == torch.float32
        assert memory.is_contiguous()
        self._library = library
        self._memory = memory

    def read(self) -> float:
        """Read all values, and return the sum of their squares."""
        args = self._memory.data_ptr(), self._memory.numel(), torch.get_num_threads()
        return float(self._library.limit_read(*args))

    def clip(self) -> float:
        """Read all values, then halve them in place; return the sum of squares before."""
        found = self.read()
        args = self._memory.data_ptr(), self._memory.numel(), 0.5, torch.get_num_threads()
        self._library.limit_scale(*args)
        return found


def loops(memory: Tensor) -> Loops | None:
    """Return the loops over a buffer of float32; None if there is no C compiler."""
    library = _library()
    return None if library is None else Loops(library, memory)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Compile the loops for this processor, and load them."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "limit.so"
        command = [compiler, *FLAGS, "-o", str(target), str(SOURCE), "-ldl"]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        library = ctypes.CDLL(str(target))
    library.limit_read.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
    library.limit_read.restype = ctypes.c_float
    library.limit_scale.argtypes = (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_float,
        ctypes.c_int,
    )
    return library
