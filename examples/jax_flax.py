"""Train a character model on the text of Python's own manual, with Flax NNX.

The optimizer is guarded: a batch whose loss or gradient is not finite reaches neither the weights
nor the optimizer's memory. Run it with  python examples/jax_flax.py
"""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gradclip.jax import guard

CONTEXT = 8


class Model(nnx.Module):
    """Predicts a character from the eight characters before it."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs) -> None:
        """Make the three layers."""
        self.embed = nnx.Embed(vocabulary, 16, rngs=rngs)
        self.hidden = nnx.Linear(16 * CONTEXT, width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Return the scores of the next character, shape (batch, vocabulary)."""
        seen = self.embed(text).reshape(text.shape[0], -1)
        return self.head(nnx.relu(self.hidden(seen)))


def batches(steps: int, size: int = 128) -> tuple[np.ndarray, int]:
    """Return characters as numbers, shape (steps, size, CONTEXT + 1), and their distinct count."""
    text = "".join(topics.values())
    letters, numbers = np.unique(np.array(list(text)), return_inverse=True)
    starts = np.random.default_rng(0).integers(0, numbers.size - CONTEXT, (steps, size, 1))
    return numbers[starts + np.arange(CONTEXT + 1)], letters.size


def main() -> None:
    """Train for 200 steps, one of them broken, and print the losses."""
    data, vocabulary = batches(200)
    model = Model(vocabulary, 64, rngs=nnx.Rngs(0))
    guarded = guard(optax.adam(0.01), "autoclip:percentile=90,window=100")
    optimizer = nnx.Optimizer(model, guarded, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: Any, batch: jax.Array, scale: jax.Array) -> jax.Array:
        def loss_of(model: Model) -> jax.Array:
            scores, wanted = model(batch[:, :-1]), batch[:, -1]
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, wanted)
            return scale * losses.mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    losses = []
    for i, batch in enumerate(data):
        scale = jnp.asarray(jnp.nan if i == 100 else 1.0)
        losses.append(float(step(model, optimizer, jnp.asarray(batch), scale)))
    state = optimizer.opt_state[0]
    clipped, steps, skipped = (int(n[...]) for n in (state.clipped, state.steps, state.skipped))
    print(f"{clipped} of {steps} steps were clipped, {skipped} skipped")
    print(f"loss {np.mean(losses[:5]):.3f} -> {np.mean(losses[-5:]):.3f}")


if __name__ == "__main__":
    main()
