"""Why the kernel is missing, where it is; and what it says of types and of errors."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

import gradclip.kernel
from gradclip.kernel import Buffers, available, binding, exchange, library, one_call

load = library.load.__wrapped__
"""Looks for the library anew: the answer for the whole process stays what it is."""

needs_kernel = pytest.mark.skipif(not available(), reason="the C kernel is not built")


def test_without_a_library_the_remedy_is_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradclip.kernel, "__path__", [str(tmp_path)])
    loaded, status = load()
    assert loaded is None
    assert (status.available, status.isa, status.library) == (False, "none", None)
    assert "Install a C compiler" in status.reason


def test_a_file_that_is_not_a_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / library.NAMES[0]).write_text("not a library")
    monkeypatch.setattr(gradclip.kernel, "__path__", [str(tmp_path)])
    loaded, status = load()
    assert loaded is None
    assert status.library == str(tmp_path / library.NAMES[0])
    assert status.reason.startswith(f"could not load {status.library}: ")


@needs_kernel
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = library.ABI_VERSION + 1
    monkeypatch.setattr(library, "ABI_VERSION", needed)
    loaded, status = load()
    assert loaded is None
    assert f"has ABI version {needed - 1}, gradclip needs {needed}" in status.reason


@needs_kernel
def test_the_library_may_lie_in_another_folder_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = library.find()
    assert found is not None
    monkeypatch.setattr(gradclip.kernel, "__path__", [str(tmp_path), str(found.parent)])
    assert library.find() == found


def test_where_the_system_tells_no_cores_of_a_process_all_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for wanted, most in (("", os.cpu_count()), ("1,2", 1), ("0", os.cpu_count())):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert binding._all_threads() == most


def test_an_error_of_the_kernel_is_one_of_python() -> None:
    none = Buffers.of([], [], [])
    with pytest.raises(MemoryError, match="0 buffers"):
        binding.check(binding.NO_MEMORY, none)
    with pytest.raises(RuntimeError, match="status 99"):
        binding.check(99, none)


def test_a_type_without_the_exchange_api_is_not_read() -> None:
    assert exchange.describe_function(object) is None
    assert exchange.gather([object()], object) is None
    assert one_call.clip([object()], object, 2.0) is None


def test_an_exchange_api_of_another_version_is_not_read() -> None:
    api = exchange._Api(major=exchange.MAJOR + 1, tensor_from_object=1)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    capsule = new(ctypes.addressof(api), exchange.NAME, None)
    newer = type("Newer", (), {"__dlpack_c_exchange_api__": capsule})
    assert exchange.describe_function(newer) is None
    api.major = exchange.MAJOR
    same = type("Same", (), {"__dlpack_c_exchange_api__": capsule})
    assert exchange.describe_function(same) == 1


@needs_kernel
def test_a_sparse_tensor_is_not_read() -> None:
    sparse = torch.eye(2).to_sparse()
    assert exchange.gather([torch.ones(2), sparse], torch.Tensor) is None
    assert one_call.clip([torch.ones(2), sparse], torch.Tensor, 2.0) is None
