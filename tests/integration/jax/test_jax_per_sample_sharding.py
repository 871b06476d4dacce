"""gradclip.jax.per_sample on four devices, whose meshes have automatic or explicit axes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest


@pytest.fixture(scope="module")
def sharded() -> Any:
    """What `_sharded` below found in a process with four devices."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("axis", ["Auto", "Explicit"])
@pytest.mark.parametrize("jit", ["jit", "eager"])
@pytest.mark.parametrize("microbatch", [None, 4, 8])
@pytest.mark.parametrize("parameters", ["copied", "sharded"])
def test_a_sharded_batch_gives_the_same(
    sharded: Any, axis: str, jit: str, microbatch: int | None, parameters: str
) -> None:
    found = sharded[f"{axis} {jit} {microbatch} {parameters}"]
    assert found["devices"] == 4, "the norms left the mesh"
    assert found["grads"] < 1e-6
    assert found["norms"] < 1e-6


def test_pieces_that_do_not_fit_an_explicit_mesh_are_refused(sharded: Any) -> None:
    for microbatch in (3, 5):
        said = sharded[f"Explicit jit {microbatch} copied"]
        assert f"microbatch={microbatch} is not usable: the batch of 24 is sharded over 2" in said
        assert "give a multiple of 2 that divides the batch" in said
        assert sharded[f"Auto jit {microbatch} copied"]["grads"] < 1e-6


# ---- in the process with four devices --------------------------------------------------------


def _sharded() -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from gradclip import PolicyError
    from gradclip.jax import per_sample

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.sum((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)

    assert jax.device_count() == 4
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((3, 4), (24, 3), (24, 4))
    w, x, y = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    params = {"w": w, "b": jnp.ones(4)}
    want, one = per_sample(loss)(params, x, y)

    def compared(function: Any, *args: Any) -> Any:
        try:
            grads, result = function(*args)
        except PolicyError as error:
            return str(error)
        return {
            "grads": max(float(abs(grads[k] - want[k]).max()) for k in want),
            "norms": float(abs(result.sample_norms / one.sample_norms - 1).max()),
            "devices": len(result.sample_norms.sharding.device_set),
        }

    found: dict[str, Any] = {}
    for axis in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis, axis))
        with jax.set_mesh(mesh):
            rows, columns, model = (
                NamedSharding(mesh, PartitionSpec(*p))
                for p in (["data"], [None, "model"], ["model"])
            )
            batch = [jax.device_put(each, rows) for each in (x, y)]
            split = {
                "w": jax.device_put(w, columns),
                "b": jax.device_put(params["b"], model),
            }
            for name, given in (("copied", params), ("sharded", split)):
                for microbatch in (None, 3, 4, 5, 8):
                    function = per_sample(loss, microbatch=microbatch)
                    for way, each in (("jit", jax.jit(function)), ("eager", function)):
                        key = f"{axis.name} {way} {microbatch} {name}"
                        found[key] = compared(each, given, *batch)
    return found


if __name__ == "__main__":
    print(json.dumps(_sharded()))
