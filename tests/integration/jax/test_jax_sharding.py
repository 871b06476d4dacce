"""gradclip.jax on gradients that are spread over eight devices: a process of its own has them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

GATHERS = ("spectral:0.5",)
"""A decomposition needs the whole matrix; nothing else may collect one on a device."""
POLICIES = (
    "norm:0.5",
    "norm:0.5,scope=tensor",
    "norm:0.05,scope=unit",
    "value:0.05",
    "autoclip:percentile=25,window=8",
    "adagc:start=0.5,warmup=2",
    "feedback(norm:0.5)",
    *GATHERS,
)


@pytest.fixture(scope="module")
def found() -> Any:
    """What `main` below found out in a process with eight devices."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-W", "error", __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("policy", POLICIES)
def test_eight_devices_do_what_one_does(found: Any, policy: str) -> None:
    here = found["policies"][policy]
    assert here["difference"] < 1e-6
    assert here["changed"] > 0.1, "nothing was clipped: the comparison says nothing"


@pytest.mark.parametrize("policy", POLICIES)
def test_no_gradient_is_collected_on_one_device(found: Any, policy: str) -> None:
    here = found["policies"][policy]
    assert here["updates stay spread"]
    assert here["memory is spread"]
    assert (here["collected values"] > 100) == (policy in GATHERS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_global_norm_talks_no_more_than_optax(found: Any, dtype: str) -> None:
    ours, theirs = found["all-reduces"][dtype]
    assert 1 <= ours <= theirs


def test_too_many_skips_stop_the_run(found: Any) -> None:
    assert re.search(r"NonFiniteError: 2 updates in a row were skipped", found["stopped"])


# ---- in the process with eight devices -------------------------------------------------------


def _look() -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from gradclip.jax import clip

    kinds = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    # As in fully sharded training, as in tensor parallelism, and a copy on every device.
    layout = {"both": ("data", "model"), "data": ("data",), "model": (None, "model"), "all": ()}
    shapes = {"both": (64, 32), "data": (16, 8), "model": (32, 16), "all": (8,)}
    spread = {k: NamedSharding(mesh, PartitionSpec(*axes)) for k, axes in layout.items()}
    rng = np.random.default_rng(0)

    def draw(scale: float) -> dict[str, Any]:
        return {
            k: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
            for k, shape in shapes.items()
        }

    params, steps = draw(1.0), [draw(scale) for scale in (0.1, 0.02, 1.0, 0.1)]

    def run(policy: str, place: Any) -> tuple[list[Any], Any, str]:
        def settle(x: Any) -> Any:
            """Put what is not laid out yet, such as a counter, where the parameters are."""
            laid = isinstance(x.sharding, NamedSharding)
            return x if laid else jax.device_put(x, place(params)["all"].sharding)

        tx = clip(policy, max_skips=None)
        here = place(params)
        after = state = jax.tree.map(settle, tx.init(here))
        outs: list[Any] = []
        update = jax.jit(tx.update).lower(here, state, here).compile()
        for grads in steps:
            out, after = update(place(grads), state, here)
            # The compiler may lay a new state out otherwise; the same step wants the old way.
            state = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), after, state)
            outs.append(out)
        return outs, after, str(update.as_text())

    def across(tree: Any) -> Any:
        return jax.device_put(tree, spread)

    result: dict[str, Any] = {"policies": {}, "all-reduces": {}}
    for policy in POLICIES:
        one, _, _ = run(policy, lambda tree: jax.device_put(tree, jax.devices()[0]))
        eight, state, text = run(policy, across)
        gaps = [
            float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(a))))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)
        ]
        moved = [
            float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(steps), strict=True)
        ]
        stays = all(
            # The compiler may spread them further, over the other axis of the mesh.
            out[k].addressable_data(0).size <= np.prod(spread[k].shard_shape(out[k].shape))
            for out in eight
            for k in out
        )
        large = [x for x in jax.tree.leaves(state.memory) if x.size == 64 * 32]
        sizes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
        result["policies"][policy] = {
            "difference": max(gaps),
            "changed": max(moved),
            "updates stay spread": stays,
            "memory is spread": all(x.addressable_data(0).size == x.size // 8 for x in large),
            "collected values": max(
                (int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes), default=0
            ),
        }
    for dtype in (jnp.float32, jnp.bfloat16):
        grads = jax.tree.map(lambda x, d=dtype: x.astype(d), across(steps[0]))
        pair = clip("norm:0.5", max_skips=None), optax.clip_by_global_norm(0.5)
        steps_of = [jax.jit(tx.update).lower(grads, tx.init(grads)).compile() for tx in pair]
        texts = [str(step.as_text()) for step in steps_of]
        # Of what runs at every step: the branches that are seldom taken stand before the entry.
        entries = [text[text.index("\nENTRY ") :] for text in texts]
        counts = [len(re.findall(r" all-reduce(?:-start)?\(", entry)) for entry in entries]
        result["all-reduces"][jnp.dtype(dtype).name] = counts
    tx = clip("norm:1", max_skips=1)
    bad = across(jax.tree.map(lambda x: x * jnp.nan, params))
    state, update = tx.init(across(params)), jax.jit(tx.update)
    try:
        for _ in range(2):
            _, state = update(bad, state)
        jax.block_until_ready(state)
        jax.effects_barrier()
        result["stopped"] = "it went on"
    except jax.errors.JaxRuntimeError as error:
        result["stopped"] = str(error)
    return result


if __name__ == "__main__":
    print(json.dumps(_look()))
