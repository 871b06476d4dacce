"""JAX on a card, where a build of JAX for cards is installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradclip.jax
import gradclip.numpy
from gradclip import auto, by_norm, by_value
from stream import stream, weights


def _cards() -> list[Any]:
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


@pytest.mark.skipif(not _cards(), reason="this build of JAX has no card")
@pytest.mark.parametrize("policy", [by_norm(0.5), by_value(0.5), auto(1000.0)], ids=str)
def test_a_card_gives_what_numpy_gives(policy: object) -> None:
    clip = gradclip.jax.clip(policy, max_skips=None)  # type: ignore[arg-type]
    memory = None
    with jax.default_device(_cards()[0]):
        params = [jnp.asarray(w, jnp.float32) for w in weights()]
        state = clip.init(params)
        update = jax.jit(lambda g, s, w: clip.update(g, s, w))
        for grads, _ in list(stream())[:12]:
            given = [np.asarray(g, np.float32) for g in grads]
            expected, memory, _ = gradclip.numpy.clip(given, policy, memory)  # type: ignore[arg-type]
            found, state = update([jnp.asarray(g) for g in given], state, params)
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
