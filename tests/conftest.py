"""What several test files need: one judge (`oracle`), one way to choose what runs."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

PATHS = ("kernel", "fallback", "device")
"""How gradclip.torch can do its work: the C kernel, torch on the host, torch on the device."""

OnPath = Callable[[str], contextlib.AbstractContextManager[None]]


def pytest_collection_finish() -> None:
    """Leave out of each search for garbage what lives until the end: many tests make searches."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def few_compilations() -> Iterator[None]:
    """Forget what JAX has compiled for a module: gigabytes, after all of them."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@contextlib.contextmanager
def _on_path(name: str) -> Iterator[None]:
    if name == "kernel":
        from gradclip import kernel

        if not kernel.available():
            pytest.skip(f"the C kernel is not built: {kernel.status().reason}")
        yield
    elif name == "fallback":
        from gradclip.kernel import KernelStatus

        missing = (None, KernelStatus(False, "none", "turned off by a test", None))
        with mock.patch("gradclip.kernel.binding.load", return_value=missing):
            yield
    else:
        # The path that an accelerator takes is the one under torch.compile: it never reads a
        # value back, and CPU tensors run it as well.
        assert name == "device"
        with mock.patch("torch.compiler.is_compiling", return_value=True):
            yield


@pytest.fixture(scope="session")
def on_path() -> OnPath:
    """Make gradclip.torch take one of its paths inside a `with` block."""
    return _on_path


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each path of gradclip.torch."""
    with _on_path(request.param):
        yield request.param
