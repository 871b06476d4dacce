"""Keras on JAX: `gradclip.jax.clip`, its state in variables of the optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...arrays import Values
from ...jax.state import ClipState
from ...jax.transform import clip
from ...method.traits import traits_of
from .side import NUMBERS, Optimizer, Settings, Store, Variable, refuse_other_rules
from .stored import load_nested, save_nested

__all__ = ["OnJax", "make"]


class OnJax:
    """See `Side`."""

    def __init__(
        self,
        optimizer: Optimizer,
        settings: Settings,
        names: Sequence[str],
        variables: Sequence[Variable],
    ) -> None:
        self._optimizer = optimizer
        self._variables = dict(zip(names, variables, strict=True))
        self._policy = settings.policy
        self.names: tuple[str, ...] = tuple(names)
        self.present: Sequence[int] = ()
        self._may_skip = settings.nonfinite == "skip" or traits_of(settings.policy).skips
        nonfinite: Any = settings.nonfinite  # `clipped` has refused "raise".
        self._transform = clip(settings.policy, nonfinite=nonfinite, max_skips=settings.max_skips)
        # Of the dictionaries only this one keeps its order in JAX; names may sort otherwise later.
        zeros = OrderedDict((n, jnp.zeros(v.shape, v.dtype)) for n, v in self._variables.items())
        state = self._transform.init(zeros)
        leaves, self._form = jax.tree.flatten(state)
        self._state = [
            optimizer.add_variable(
                leaf.shape, _Constant(leaf), dtype=str(leaf.dtype), name=f"gradclip_{i}"
            )
            for i, leaf in enumerate(leaves)
        ]

    def clip(self, grads: Sequence[Values]) -> list[Values]:
        """See `Side`: works in a step that JAX traces."""
        if self._optimizer.gradient_accumulation_steps:
            # Keras clips at each batch, and drops what it clipped where it only accumulates.
            grads = [jnp.where(self._is_whole(), g, jnp.zeros_like(g)) for g in grads]
        given = {self.names[i]: g for i, g in zip(self.present, grads, strict=True)}
        weights = OrderedDict((n, v.value) for n, v in self._variables.items())
        tree = OrderedDict((n, given.get(n, jnp.zeros_like(w))) for n, w in weights.items())
        done: tuple[Any, Any] = self._transform.update(tree, self._now(), weights)  # pyright: ignore
        clipped, state = done
        for variable, value in zip(self._state, jax.tree.leaves(state), strict=True):
            variable.assign(value)
        return [clipped[self.names[i]] for i in self.present]

    def _now(self) -> ClipState:
        return jax.tree.unflatten(self._form, [variable.value for variable in self._state])

    def _is_whole(self) -> Values:
        """Return whether this batch ends an accumulation."""
        steps = self._optimizer.gradient_accumulation_steps or 1
        return (self._optimizer._iterations.value + 1) % steps == 0

    def step(self, apply: Callable[[], None]) -> None:
        """See `Side`: all that changed is put back."""
        if not self._may_skip:
            apply()
            return
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps or 1
        begins_anew = [*self._state, *(optimizer._accumulated_gradients if steps > 1 else ())]
        others = {id(variable) for variable in begins_anew}
        every = [*optimizer._trainable_variables, *optimizer.variables]
        before = [(v, v.value) for v in every if id(v) not in others]
        count, is_whole = optimizer._iterations.value, self._is_whole()
        apply()
        skipped = jnp.logical_and(self._now().last["skipped"], is_whole)
        for variable, old in before:
            variable.assign(jnp.where(skipped, old, variable.value))
        # Back to where the accumulation of this step began.
        again, now = count - (steps - 1), optimizer._iterations
        now.assign(jnp.where(skipped, again, jnp.where(is_whole, count + 1, now.value)))

    def counts(self) -> Mapping[str, int]:
        """See `Side`."""
        state = self._now()
        names = ("steps", "clipped_steps", "skipped_steps")
        return {name: int(getattr(state, name)) for name in names}

    def last(self) -> Mapping[str, float] | None:
        """See `Side`."""
        last = self._now().last
        flags = {name: int(last[name]) for name in ("clipped", "skipped")}
        return {name: float(last[name]) for name in NUMBERS} | flags

    def norms(self) -> list[float]:
        """See `Side`."""
        return self._now().last["norms"].tolist()

    def variables(self) -> Mapping[str, Variable]:
        """See `Side`."""
        return self._variables

    def save(self, store: Store) -> None:
        """See `Side`: the variables of the optimizer hold everything but the names."""
        save_nested({"names": self.names}, store)

    def load(self, store: Store) -> None:
        """See `Side`."""
        saved = load_nested(store)
        if saved is not None:
            refuse_other_rules(self._policy, saved["names"], self.names)


class _Constant:
    """An initializer that returns one array."""

    def __init__(self, value: Values) -> None:
        self._value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Values:
        del shape
        return jnp.asarray(self._value, dtype)


def make(
    optimizer: Optimizer, settings: Settings, names: Sequence[str], variables: Sequence[Variable]
) -> OnJax:
    """Return the clipping of an optimizer that is built."""
    return OnJax(optimizer, settings, names, variables)
