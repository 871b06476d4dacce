"""Train a recurrent network on the text of Python's own manual, with Equinox.

Each row of a weight matrix is clipped in proportion to its own size (AGC), without the output
layer, as the authors advise. Equinox has the units on the first axis, hence `axis=0`.
Run it with  python examples/jax_equinox.py
"""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradclip import agc
from gradclip.jax import clip


class Model(eqx.Module):
    """Reads characters one by one and predicts the next character."""

    embed: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, vocabulary: int, width: int, *, key: Any) -> None:
        """Make the three layers."""
        one, two, three = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(vocabulary, width, key=one)
        self.cell = eqx.nn.GRUCell(width, width, key=two)
        self.head = eqx.nn.Linear(width, vocabulary, key=three)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Return the scores of each next character, shape (length, vocabulary)."""

        def read(state: jax.Array, letter: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = self.cell(self.embed(letter), state)
            return state, self.head(state)

        return jax.lax.scan(read, jnp.zeros(self.cell.hidden_size), text)[1]


def batches(steps: int, size: int = 16, length: int = 16) -> tuple[np.ndarray, int]:
    """Return characters as numbers, shape (steps, size, length + 1), and their distinct count."""
    text = "".join(topics.values())
    letters, numbers = np.unique(np.array(list(text)), return_inverse=True)
    starts = np.random.default_rng(0).integers(0, numbers.size - length - 1, (steps, size, 1))
    return numbers[starts + np.arange(length + 1)], letters.size


def loss_of(model: Model, batch: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the next characters."""
    scores = jax.vmap(model)(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, 1:]).mean()


def main() -> None:
    """Train for 100 steps and print the losses."""
    data, vocabulary = batches(100)
    model = Model(vocabulary, 48, key=jax.random.key(0))
    policy = {"head.*": None, "*": agc(0.05, axis=0)}
    optimizer = optax.chain(clip(policy), optax.adam(0.01))
    state: Any = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Model, state: Any, batch: jax.Array) -> tuple[Model, Any, jax.Array]:
        loss, grads = eqx.filter_value_and_grad(loss_of)(model, batch)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for batch in data:
        model, state, loss = step(model, state, jnp.asarray(batch))
        losses.append(loss)
    print(f"{int(state[0].clipped)} of {int(state[0].steps)} steps were clipped")
    print(f"loss {np.mean(losses[:5]):.3f} -> {np.mean(losses[-5:]):.3f}")


if __name__ == "__main__":
    main()
