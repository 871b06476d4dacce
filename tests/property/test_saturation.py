"""A factor that enlarges takes no finite value to inf or NaN: on every path, in every dtype."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.backends import BACKENDS, DTYPES, start
from gradclip import aggc, band, by_norm, clip21, floor, normalise, parse, tanh, with_feedback
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper, attach
from integration.training import decided_on_device
from parity.test_torch_dropins import Reads

POLICIES: list[AnyPolicy] = [
    *(
        make(*arguments, scope=scope)
        for scope in ("global", "tensor", "unit")
        for make, arguments in ((normalise, (3e38,)), (floor, (3e38,)), (band, (2e38, 3e38)))
    ),
    normalise(1e5),
    floor(1e5, scope="unit", axis=(0, 1)),
    normalise(1e300),
    aggc(3e38, 3e38, min_norm=3e38),
    with_feedback(normalise(1e5)),
    clip21(normalise(1e5)),
    with_feedback(floor(3e38)),
    by_norm(1.0) | floor(3e38, scope="tensor"),
    tanh(1e-3),
]
SIZES = [0.0, -0.0, 1.0, -1.0, 1e-30, 3e-8, 250.0, -6e4, 3e38, -1e38]


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "jax"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_what_is_finite_stays_finite(backend: str, policy: AnyPolicy, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    most = float(ml_dtypes.finfo(dtype).max)
    shapes = [(2, 3), (3,), ()]
    steps = []
    for _ in range(2):
        drawn = [
            data.draw(st.lists(st.sampled_from(SIZES), min_size=n, max_size=n)) for n in (6, 3, 1)
        ]
        pairs = zip(drawn, shapes, strict=True)
        steps.append(
            [np.clip(np.asarray(v), -most, most).astype(dtype).reshape(s) for v, s in pairs]
        )
    work = start(backend, [np.ones(s).astype(dtype) for s in shapes], policy, "propagate")
    for grads in steps:
        found, _ = work.step(grads)
        for before, after in zip(grads, found, strict=True):
            assert after is not None
            wide, was = after.astype(np.float64), before.astype(np.float64)
            assert np.isfinite(wide).all(), (was, wide)
            if not work_carries(policy):
                assert ((wide == 0) | (np.sign(wide) == np.sign(was))).all()


def work_carries(policy: AnyPolicy) -> bool:
    """Return whether earlier gradients reach the result, so that a sign may change."""
    return "feedback" in str(policy) or "clip21" in str(policy)


@pytest.mark.parametrize("scope", ["global", "tensor", "unit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_device_gives_what_the_host_gives(scope: Any, dtype: Any) -> None:
    most = float(ml_dtypes.finfo(dtype).max)
    grads = [np.asarray([[1.0, -1e-3], [0.0, 0.5]]).astype(dtype), np.ones(3).astype(dtype)]
    for policy in (normalise(2 * most, scope=scope), floor(0.9 * most, scope=scope, max_gain=1e38)):
        found = {}
        for backend in ("numpy", "device", "fallback", "kernel"):
            found[backend], _ = start(backend, [np.ones_like(g) for g in grads], policy).step(grads)
        for backend in ("device", "fallback", "kernel"):
            for a, b in zip(found[backend], found["numpy"], strict=True):
                assert a is not None
                assert b is not None
                eps = 2 * float(ml_dtypes.finfo(dtype).eps)
                np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=eps)


@pytest.mark.parametrize("policy", [normalise(3e38), floor(1e5), by_norm(1.0)], ids=str)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden(policy: AnyPolicy, bad: float) -> None:
    """With nonfinite="propagate" the device gives what the host gives."""
    grad = np.asarray([bad, 1.0, -2.0], np.float32)
    results = [
        start(b, [np.ones(3, np.float32)], policy, "propagate").step([grad])[0][0]
        for b in ("numpy", "kernel", "device")
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    assert not np.isfinite(results[0]).all()


@pytest.mark.parametrize("policy", ["normalise:1e5", "floor:1e5,scope=unit", "band:1e5,1e6"])
def test_the_device_reads_nothing_back(policy: str, on_path: Any) -> None:
    param = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float16))
    param.grad = torch.ones(3, 2, dtype=torch.float16)
    with on_path("device"):
        clipper = Clipper([param], policy)
        with Reads() as reads:
            clipper.clip_()
    assert not reads.found
    assert torch.isfinite(param.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("low", ["normalise", "floor"])
def test_the_fold_takes_no_value_to_inf(dtype: torch.dtype, where: str, low: str) -> None:
    most = torch.finfo(dtype).max
    param = torch.nn.Parameter(torch.zeros(3, 1, dtype=dtype))
    optimizer = torch.optim.SGD([param], lr=0.0, fused=True)
    clipper = attach(optimizer, parse(f"{low}:{2 * most!r}"))
    param.grad = torch.tensor([[most / 8], [1e-3], [0.0]], dtype=dtype)
    with decided_on_device() if where == "device" else contextlib.nullcontext():
        optimizer.step()
    assert clipper.last is not None
    assert param.grad is not None
    assert torch.isfinite(param.grad).all(), param.grad
    assert float(param.grad[0]) == most
