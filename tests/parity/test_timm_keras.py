"""Against timm's adaptive_clip_grad, and the three clipping arguments of Keras's optimizers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradclip.numpy
from gradclip import agc, by_norm, by_value
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper

# ---- timm ----------------------------------------------------------------------------------


def adaptive_clip_grad() -> Any:
    """Return timm's function, from its own file: the package itself imports torchvision."""
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        pytest.skip("timm is not installed")
    file = Path(package.submodule_search_locations[0]) / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_agc", file)
    if not file.exists() or spec is None or spec.loader is None:
        pytest.skip("this timm has no utils/agc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.adaptive_clip_grad


def _parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Return parameters of every rank a network has, with gradients from tiny to large."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, shape in enumerate([(), (5,), (4, 3), (4, 3, 5), (4, 3, 3, 3), (2, 2, 1, 2, 2)]):
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        grad = torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (i - 3)
        if len(shape) > 1:
            grad[0] = 0  # A unit without a gradient,
            param.data[1] = 0  # and one without weights.
            grad[-1] *= 1e-4
        if len(shape) == 1:
            param.data *= 1e-5  # A norm under eps.
        param.grad = grad
        found.append(param)
    return found


def largest_difference(dtype: torch.dtype, clipping: float, eps: float) -> float:
    """Return how far the two are apart, relative to each value; some values are clipped."""
    theirs, ours = _parameters(dtype), _parameters(dtype)
    raw = [p.grad.clone() for p in ours if p.grad is not None]
    adaptive_clip_grad()(theirs, clip_factor=clipping, eps=eps)
    result = Clipper(ours, agc(clipping, eps)).clip_()
    assert bool(result.clipped)
    kept, worst = 0, 0.0
    for one, other, before in zip(ours, theirs, raw, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        size = other.grad.abs()
        gap = (one.grad - other.grad).abs() / torch.where(size > 0, size, 1.0)
        worst = max(worst, float(gap.max()))
        kept += int((one.grad == before).sum())
    assert 0 < kept < sum(g.numel() for g in raw)
    return worst


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("clipping", "eps"), [(0.01, 1e-3), (0.1, 1e-3), (0.01, 1e-2)])
def test_agc_is_timms(dtype: torch.dtype, bound: float, clipping: float, eps: float) -> None:
    assert largest_difference(dtype, clipping, eps) < bound


# ---- Keras ---------------------------------------------------------------------------------

POLICIES: dict[str, tuple[str, float, AnyPolicy]] = {
    "clipnorm": ("clipnorm", 0.7, by_norm(0.7, scope="tensor")),
    "clipnorm-loose": ("clipnorm", 1e3, by_norm(1e3, scope="tensor")),
    "global_clipnorm": ("global_clipnorm", 0.7, by_norm(0.7)),
    "global_clipnorm-loose": ("global_clipnorm", 1e3, by_norm(1e3)),
    "clipvalue": ("clipvalue", 0.3, by_value(0.3)),
}

SCRIPT = """
import json, sys
import keras, numpy as np

asked = json.load(sys.stdin)
answer = {}
for name, (argument, limit) in asked["arguments"].items():
    optimizer = keras.optimizers.SGD(learning_rate=1.0, **{argument: limit})
    variables = [keras.Variable(np.zeros(np.shape(g), "float32")) for g in asked["grads"]]
    optimizer.build(variables)
    grads = [keras.ops.convert_to_tensor(g, dtype="float32") for g in asked["grads"]]
    optimizer.apply(grads, variables)
    answer[name] = [(-keras.ops.convert_to_numpy(v.value)).tolist() for v in variables]
print(json.dumps(answer))
"""


def _grads() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(2)
    shapes = [(4, 3), (3,), (2, 2, 2)]
    return [
        (s * rng.normal(size=n)).astype(np.float32)
        for s, n in zip((1, 0.1, 2), shapes, strict=True)
    ]


def keras_updates(backend: str) -> dict[str, Any]:
    """Return the step that Keras's SGD of rate 1 takes, for each argument, on one backend."""
    for package in ("keras", backend):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    arguments = {name: (argument, limit) for name, (argument, limit, _) in POLICIES.items()}
    asked = json.dumps({"arguments": arguments, "grads": [g.tolist() for g in _grads()]})
    # One process for all: Keras chooses its backend when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=asked,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "KERAS_BACKEND": backend},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module", params=["jax", "torch"])
def updates(request: pytest.FixtureRequest) -> dict[str, Any]:
    return keras_updates(request.param)


def keras_difference(updates: dict[str, Any], name: str) -> float:
    """Return how far Keras's step is from the policy's, relative to the largest value."""
    ours, _, result = gradclip.numpy.clip(_grads(), POLICIES[name][2])
    assert bool(result.clipped) == ("loose" not in name)
    pairs = [(o, np.asarray(t)) for o, t in zip(ours, updates[name], strict=True)]
    size = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs) / size


@pytest.mark.parametrize("name", POLICIES)
def test_the_argument_of_keras_is_this_policy(updates: dict[str, Any], name: str) -> None:
    assert keras_difference(updates, name) < 1e-6
