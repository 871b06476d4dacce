"""Keras on TensorFlow: `gradclip.numpy.clip` on the host, from a step that XLA does not compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf  # pyright: ignore
from tensorflow.python.ops import control_flow_util  # pyright: ignore[reportMissingImports]

from ... import numpy as numpy_side
from ...arrays import State, Values
from ...engine.result import ClipResult
from ...errors import NonFiniteError, PolicyError
from ...method.traits import traits_of
from .side import NUMBERS, Optimizer, Settings, Store, Variable, refuse_other_rules
from .stored import load_nested, save_nested
from .units import units_last

__all__ = ["OnTensorflow", "make"]

_COUNTS = ("steps", "clipped_steps", "skipped_steps", "in_a_row")


class OnTensorflow:
    """See `Side`."""

    def __init__(
        self,
        optimizer: Optimizer,
        settings: Settings,
        names: Sequence[str],
        variables: Sequence[Variable],
    ) -> None:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            remedy = (
                "Keras on TensorFlow clips in each replica, before the sum over the replicas: use "
                "one replica, or Keras on torch or JAX"
            )
            raise PolicyError.of("tf.distribute", f"{replicas} replicas", remedy)
        self._optimizer = optimizer
        self._settings = replace(settings, policy=units_last(settings.policy))
        self._variables = variables
        self._looks_at_weights = traits_of(settings.policy).weights
        self._may_skip = settings.nonfinite == "skip" or traits_of(settings.policy).skips
        self.names: tuple[str, ...] = tuple(names)
        self.present: Sequence[int] = ()
        self._state: State | None = None
        self._result: ClipResult | None = None
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._is_to_undo = False

    def clip(self, grads: Sequence[Any]) -> list[Any]:
        """See `Side`: in a graph the host is called at each step."""
        graph = tf.compat.v1.get_default_graph()
        if not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(graph):
            remedy = (
                "gradclip clips on the host, in NumPy, and a step that XLA compiles cannot call "
                "the host: model.compile(..., jit_compile=False), or Keras on torch or JAX"
            )
            raise PolicyError.of("jit_compile", True, remedy)
        dense = [tf.convert_to_tensor(grad) for grad in grads]
        weights = (
            [tf.convert_to_tensor(v) for v in self._variables] if self._looks_at_weights else []
        )
        present = list(self.present)

        def on_host(*arrays: np.ndarray) -> list[np.ndarray]:
            return self._clip(present, arrays[: len(dense)], arrays[len(dense) :])

        clipped = tf.numpy_function(on_host, [*dense, *weights], [grad.dtype for grad in dense])
        clipped = [clipped] if len(dense) == 1 and not isinstance(clipped, list) else clipped
        for new, old in zip(clipped, dense, strict=True):
            new.set_shape(old.shape)
        return list(clipped)

    def _clip(
        self, present: list[int], grads: Sequence[np.ndarray], weights: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Clip arrays on the host, and remember and count the step."""
        settings = self._settings
        named: dict[str, Values] = dict.fromkeys(self.names)
        named |= {self.names[i]: grad for i, grad in zip(present, grads, strict=True)}
        known = dict(zip(self.names, weights, strict=True)) if weights else None
        clipped, state, result = numpy_side.clip(
            named, settings.policy, self._state, weights=known, nonfinite=settings.nonfinite
        )
        self._state, self._result = state, result
        self._is_to_undo = bool(result.skipped)
        self._count(result)
        return [np.asarray(clipped[self.names[i]]) for i in present]

    def _count(self, result: ClipResult) -> None:
        """Count a step.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        counts, skipped = self._counts, bool(result.skipped)
        counts["steps"] += 1
        counts["clipped_steps"] += bool(result.clipped)
        counts["skipped_steps"] += skipped
        counts["in_a_row"] = (counts["in_a_row"] + 1) * skipped
        if counts["in_a_row"] > self._settings.max_skips:
            raise NonFiniteError(
                f"{counts['in_a_row']} steps in a row were skipped "
                f"(max_skips={self._settings.max_skips}); the last norm was "
                f"{float(result.total_norm):.4g}; inf or NaN is in {list(result.nonfinite)}"
            )

    def step(self, apply: Callable[[], None]) -> None:
        """See `Side`: all that changed is put back."""
        if not self._may_skip:
            apply()
            return
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps or 1
        others = {id(v) for v in (optimizer._accumulated_gradients if steps > 1 else ())}
        every = [*optimizer._trainable_variables, *optimizer.variables]
        before = [(v, tf.identity(v)) for v in every if id(v) not in others]
        again = tf.identity(optimizer._iterations) - (steps - 1)
        with tf.control_dependencies([again, *(old for _, old in before)]):
            apply()

        def undo() -> None:
            for variable, old in before:
                variable.assign(old)
            # Back to where the accumulation of this step began.
            optimizer._iterations.assign(again)

        if tf.executing_eagerly():
            if self._undoes():
                undo()
            return
        tf.cond(tf.numpy_function(self._undoes, [], tf.bool), undo, lambda: None)

    def _undoes(self) -> np.ndarray:
        """Return once whether the last step is to be undone."""
        asked, self._is_to_undo = self._is_to_undo, False
        return np.asarray(asked)

    def counts(self) -> Mapping[str, int]:
        """See `Side`."""
        return {name: self._counts[name] for name in _COUNTS[:3]}

    def last(self) -> Mapping[str, float] | None:
        """See `Side`."""
        if self._result is None:
            return None
        flags = {name: int(getattr(self._result, name)) for name in ("clipped", "skipped")}
        return {name: float(getattr(self._result, name)) for name in NUMBERS} | flags

    def norms(self) -> list[float]:
        """See `Side`."""
        assert self._result is not None
        return self._result.norms.tolist()

    def variables(self) -> Mapping[str, Variable]:
        """See `Side`."""
        return dict(zip(self.names, self._variables, strict=True))

    def save(self, store: Store) -> None:
        """See `Side`."""
        save_nested({"counts": self._counts, "state": self._state}, store)

    def load(self, store: Store) -> None:
        """See `Side`."""
        saved = load_nested(store)
        if saved is None:
            return
        counts, state = saved["counts"], saved["state"]
        if state is not None:
            old = state["names"]
            refuse_other_rules(self._settings.policy, old, self.names)
            renamed = dict(zip(old, self.names, strict=True))
            shapes = {renamed[name]: shape for name, shape in state["shapes"].items()}
            state |= {"names": list(self.names), "shapes": shapes}
        self._counts, self._state = counts, state


def make(
    optimizer: Optimizer, settings: Settings, names: Sequence[str], variables: Sequence[Variable]
) -> OnTensorflow:
    """Return the clipping of an optimizer that is built."""
    return OnTensorflow(optimizer, settings, names, variables)
