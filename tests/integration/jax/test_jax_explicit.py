"""gradclip.jax on four devices, whose meshes have explicit axes, as `jax.make_mesh` makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from gradclip.method.catalogue import CATALOGUE


def _alone(*command: str) -> Any:
    """Run a part of this file in a process with four devices."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, __file__, *command],
        capture_output=True,
        text=True,
        env=env,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> Any:
    """What `_explicit` below found out about every method."""
    return _alone("explicit")


@pytest.mark.parametrize("name", CATALOGUE)
def test_explicit_sharding_changes_no_value_and_stays(found: Any, name: str) -> None:
    assert found[name] == "values and layouts are right"


@pytest.mark.parametrize("place", ["auto", "explicit", "replicated", "one of them", "pmap"])
def test_too_many_skips_raise_on_several_devices(place: str) -> None:
    """Where one device alone raised, the others waited for it until XLA ended the process."""
    for said in _alone("skips", place):
        assert "NonFiniteError: 3 updates in a row were skipped (max_skips=2)" in said


# ---- in the process with four devices --------------------------------------------------------


def _explicit() -> dict[str, str]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from gradclip import by_norm
    from gradclip.jax import clip

    mesh = jax.make_mesh((4,), ("d",))
    specs = {"a": (None, "d"), "b": ("d",), "c": (), "d": ("d",), "scalar": ()}
    shapes = {"a": (8, 4), "b": (8,), "c": (2, 2, 3), "d": (4, 2, 3), "scalar": ()}
    homes = {k: NamedSharding(mesh, PartitionSpec(*spec)) for k, spec in specs.items()}
    rng = np.random.default_rng(0)
    one = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    four: Any = jax.device_put(one, homes)

    def laid(tree: Any) -> bool:
        return all(tree[k].sharding.is_equivalent_to(homes[k], tree[k].ndim) for k in homes)

    def said(policy: Any) -> str:
        tx = clip(policy, max_skips=None)
        (alone, _), outs = _after(jax.jit(tx.update), tx, one), []
        for update in (
            (jax.jit(tx.update), tx.update) if policy == by_norm(1.0) else (jax.jit(tx.update),)
        ):
            out, state = _after(update, tx, four)
            outs.append(out)
            if not laid(out):
                return f"laid out as {[x.sharding.spec for x in out.values()]}"
            large = [x for x in state.memory if x.shape == (8, 4)]
            if not all(x.sharding.is_equivalent_to(homes["a"], 2) for x in large):
                return "the memory has lost its layout"
        for out in outs:
            for k, x in alone.items():
                if not np.allclose(x, out[k], 1e-4, 1e-6):
                    return f"{k} has other values"
        return "values and layouts are right"

    return {name: said(row.policy) for name, row in CATALOGUE.items()}


def _after(update: Any, tx: Any, params: Any) -> Any:
    """Return what the third update returns."""
    out, state = params, tx.init(params)
    for _ in range(3):
        out, state = update(params, state, params, loss=1.0)
    return out, state


def _skips(place: str) -> list[str]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from gradclip.jax import clip

    tx = optax.chain(clip("norm:1", max_skips=2), optax.adam(1e-3))

    def step(params: Any, state: Any, scale: Any) -> Any:
        grads = jax.grad(lambda p: scale * jnp.sum(p**2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(*, waits: bool) -> str:
        params: Any = jnp.ones((4, 8) if place == "pmap" else 8)
        if place in ("auto", "explicit", "replicated"):
            kind = AxisType.Explicit if place == "explicit" else AxisType.Auto
            mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
            spec = PartitionSpec() if place == "replicated" else PartitionSpec("d")
            params = jax.device_put(params, NamedSharding(mesh, spec))
        state = jax.vmap(tx.init)(params) if place == "pmap" else tx.init(params)
        go: Any = jax.pmap(step, in_axes=(0, 0, None)) if place == "pmap" else jax.jit(step)
        try:
            for i in range(20):
                params, state = go(params, state, np.nan if i > 2 else 1.0)
                if waits:
                    jax.block_until_ready(params)
            jax.block_until_ready((params, state))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            return str(error)
        return "it went on"

    return [run(waits=True), run(waits=False)]


if __name__ == "__main__":
    print(json.dumps(_explicit() if sys.argv[1] == "explicit" else _skips(sys.argv[2])))
