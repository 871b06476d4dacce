"""Fit a small regression with one broken batch, with optax and a clipping policy.

The policy is ZClip: a gradient whose norm is an outlier is scaled down to the usual size.
Run it with  python examples/jax_optax.py
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradclip import zclip
from gradclip.jax import clip

Params = dict[str, jax.Array]


def loss_of(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def batches(steps: int) -> tuple[jax.Array, jax.Array]:
    """Return inputs and targets of shape (steps, 64, 4); one batch has a wrong unit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, 64, 4)).astype(np.float32)
    y = np.sin(2 * x[..., :1]) * x[..., 1:2] + 0.1 * rng.normal(size=(steps, 64, 1))
    y[steps // 2] *= 1000
    return jnp.asarray(x), jnp.asarray(y, jnp.float32)


def main() -> None:
    """Train for 600 steps in one compiled loop and print the losses and the results of clipping."""
    rng = np.random.default_rng(1)
    shapes = {"in": (4, 32), "bias": (32,), "out": (32, 1)}
    params: Params = {
        name: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    optimizer = optax.chain(clip(zclip()), optax.adam(0.01))

    def step(carry: Any, batch: Any) -> Any:
        state: Any
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (loss, state[0].last)

    run = jax.jit(lambda carry, data: jax.lax.scan(step, carry, data))
    (params, state), (losses, last) = run((params, optimizer.init(params)), batches(600))
    worst = int(jnp.argmax(last["total_norm"]))
    print(f"{int(state[0].clipped)} of {int(state[0].steps)} steps were clipped")
    print(
        f"step {worst}: the norm {last['total_norm'][worst]:.3g} "
        f"became {last['clipped_norm'][worst]:.3g}"
    )
    print(f"loss {losses[:20].mean():.3f} -> {losses[-20:].mean():.3f}")


if __name__ == "__main__":
    main()
