"""JAX, jitted and not: `gradclip.jax.clip` against `optax.clip_by_global_norm`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .gradients import WrongOutput
from .measure import Side, alternate, timed
from .row import Case, Effort, Row, at_most
from .shapes import SETS

__all__ = ["CASES"]

OURS, RIVAL = "gradclip.jax.clip", "optax.clip_by_global_norm"
HOW = {
    "clipped": "clipped",
    "free": "not clipped",
    "donated": "not clipped, donated",
    "eager": "not clipped, outside of jit",
}


def _run(key: str, how: str, effort: Effort) -> list[Row]:
    """Measure the update. If donated, each output is the input of the next call."""
    import jax
    import optax

    import gradclip.jax

    shapes = SETS[key]()
    generator = np.random.default_rng(0)
    first = {
        name: generator.standard_normal(shape, np.float32) / np.float32(shapes.count**0.5)
        for name, shape in shapes.named
    }
    norm = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in first.values()) ** 0.5
    limit = norm / 2 if how == "clipped" else norm * 10
    transformations = {
        OURS: gradclip.jax.clip(f"norm:{limit!r}"),
        RIVAL: optax.clip_by_global_norm(limit),
    }
    sides, outputs = [], {}
    for name, transformation in transformations.items():
        call = _Call(transformation, jax.tree.map(jax.numpy.asarray, first), how)
        sides.append(Side(name, timed(call)))
        outputs[name] = call
    times = alternate(sides, effort.budget(6.0))
    for name, call in outputs.items():
        _verify(name, call, first, min(1.0, limit / norm))
    return [at_most(1.0, f"JAX, {shapes.title}, {HOW[how]}", times, OURS, RIVAL)]


class _Call:
    """One update of a transformation, until it is ready; each call passes on its state."""

    def __init__(self, transformation: Any, grads: Any, how: str) -> None:
        import jax

        self._donated = how == "donated"
        self._update: Callable[..., Any] = transformation.update
        if how != "eager":
            donated = (0, 1) if self._donated else ()
            self._update = jax.jit(transformation.update, donate_argnums=donated)
        # Its scalars may be one array. An array cannot be donated twice, so each gets its own.
        self._state = jax.tree.map(lambda x: x.copy(), transformation.init(grads))
        self._grads = jax.tree.map(lambda x: x.copy(), grads)
        self.output = self._grads

    def __call__(self) -> None:
        import jax

        self.output, self._state = jax.block_until_ready(self._update(self._grads, self._state))
        if self._donated:  # The input is deleted. Under the limit the output is the same.
            self._grads = self.output


def _verify(name: str, call: _Call, first: dict[str, Any], factor: float) -> None:
    """Compare the last output with float64."""
    for key, value in first.items():
        got, want = np.asarray(call.output[key], np.float64), value.astype(np.float64) * factor
        # optax adds in float32, so its own error is allowed.
        tolerance = 1e-6 if name == OURS else 2e-3
        if not np.all(np.abs(got - want) <= tolerance * np.abs(want)):
            raise WrongOutput(f"{name}: {key} is not the gradient times {factor}")


CASES = tuple(
    Case(f"jax-{key}-{how}", functools.partial(_run, key, how), key == "gpt2" or how != "clipped")
    for key in ("gpt2", "resnet50")
    for how in HOW
)
