"""What can run a policy: the same steps on every backend, from NumPy arrays to NumPy arrays."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol
from unittest import mock

import ml_dtypes
import numpy as np
import torch

import gradclip.numpy
from gradclip import ClipResult, GradclipWarning
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper

__all__ = ["BACKENDS", "DTYPES", "Arrays", "Steps", "leaves", "start"]

Array = np.ndarray[Any, Any]
Arrays = list[Array | None]
DTYPES = tuple(map(np.dtype, (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)))


class Steps(Protocol):
    """A policy at work on one set of parameters."""

    def step(self, grads: Arrays, loss: float | None = None) -> tuple[Arrays, ClipResult]:
        """Clip one step's gradients, which are not mutated."""
        ...

    def memory(self) -> list[Array]:
        """Return copies of all that is remembered, in a fixed order."""
        ...


class _NumPy:
    def __init__(self, weights: Arrays, policy: AnyPolicy, nonfinite: Any) -> None:
        self._weights, self._policy, self._nonfinite = weights, policy, nonfinite
        self.state: Any = None

    def step(self, grads: Arrays, loss: float | None = None) -> tuple[Arrays, ClipResult]:
        clipped, self.state, result = gradclip.numpy.clip(
            grads,
            self._policy,
            self.state,
            weights=self._weights,
            loss=loss,
            nonfinite=self._nonfinite,
        )
        return list(clipped), result

    def memory(self) -> list[Array]:
        return [] if self.state is None else leaves(self.state["memory"])


class _Torch:
    """PyTorch on one of its paths; `turn` makes it take that path."""

    def __init__(
        self, weights: Arrays, policy: AnyPolicy, nonfinite: Any, turn: Callable[[], Any]
    ) -> None:
        self._turn = turn
        self.params = [torch.nn.Parameter(_tensor(w)) for w in weights if w is not None]
        self.clipper = Clipper(self.params, policy, nonfinite=nonfinite, max_skips=1000)

    def step(self, grads: Arrays, loss: float | None = None) -> tuple[Arrays, ClipResult]:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else _tensor(grad)
        with self._turn(), warnings.catch_warnings():
            warnings.simplefilter("ignore", GradclipWarning)  # A skip: the result says so too.
            result = self.clipper.clip_(loss=loss)
        return [None if p.grad is None else _array(p.grad) for p in self.params], result

    def memory(self) -> list[Array]:
        return leaves(self.clipper.state_dict()["memory"])


@functools.cache
def _compiled(policy: AnyPolicy, nonfinite: Any) -> tuple[Any, Any]:
    """Return `init` and a compiled `update` of (gradients, state, weights, loss)."""
    import jax

    import gradclip.jax

    clip = gradclip.jax.clip(policy, nonfinite=nonfinite, max_skips=None)
    return clip.init, jax.jit(lambda g, state, w, loss: clip.update(g, state, w, loss=loss))


class _Jax:
    """JAX, jitted: compiling takes half a second for each policy, dtype and set of shapes."""

    def __init__(self, weights: Arrays, policy: AnyPolicy, nonfinite: Any) -> None:
        import jax.numpy as jnp

        self._x64 = any(w is not None and w.dtype == np.float64 for w in weights)
        init, self._update = _compiled(policy, nonfinite)
        with self._precision():
            self._weights = [jnp.asarray(w) for w in weights]
            self.state: Any = init(self._weights)

    def _precision(self) -> Any:
        import jax

        return jax.enable_x64(self._x64)

    def step(self, grads: Arrays, loss: float | None = None) -> tuple[Arrays, ClipResult]:
        import jax.numpy as jnp

        with self._precision():
            given = [jnp.asarray(g) for g in grads]
            found, self.state = self._update(given, self.state, self._weights, loss)
        last = {name: np.asarray(value) for name, value in self.state.last.items()}
        rest: dict[str, Any] = dict.fromkeys({f.name for f in fields(ClipResult)} - last.keys(), ())
        return [np.asarray(g) for g in found], ClipResult(**last, **rest)

    def memory(self) -> list[Array]:
        return leaves(self.state.memory)


def _fallback() -> Any:
    return mock.patch("gradclip.kernel.available", return_value=False)


def _device() -> Any:
    return mock.patch("torch.compiler.is_compiling", return_value=True)


BACKENDS = ("numpy", "kernel", "fallback", "device", "jax")
_TURNS: dict[str, Callable[[], Any]] = {
    "kernel": contextlib.nullcontext,
    "fallback": _fallback,
    "device": _device,
}


def start(backend: str, weights: Arrays, policy: AnyPolicy, nonfinite: Any = "skip") -> Any:
    """Return a policy at work on a backend.

    Args:
        backend: one of BACKENDS. "kernel" is PyTorch on the host with the C kernel, "fallback"
            without it; "device" is the path of an accelerator, which CPU tensors can take too.
        weights: the parameters, in the gradients' dtypes.
        policy: a policy, which JAX compiles once.
        nonfinite: see `gradclip.numpy.clip`.
    """
    if backend == "numpy":
        return _NumPy(weights, policy, nonfinite)
    if backend == "jax":
        return _Jax(weights, policy, nonfinite)
    return _Torch(weights, policy, nonfinite, _TURNS[backend])


def leaves(memory: Any) -> list[Array]:
    """Return copies of the arrays of a nested memory, in the order of its keys."""
    return [np.array(_array(leaf)) for leaf in _walk(memory)]


def _walk(memory: Any) -> Iterator[Any]:
    if isinstance(memory, dict):
        for name in sorted(memory):
            yield from _walk(memory[name])
    elif isinstance(memory, Sequence):
        for part in memory:
            yield from _walk(part)
    elif memory is not None:
        yield memory


def _tensor(array: Array) -> torch.Tensor:
    """Return a copy with the same strides."""
    copy = array.copy(order="K")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _array(leaf: Any) -> Array:
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    if leaf.dtype == torch.bfloat16:
        return leaf.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return leaf.detach().numpy()
