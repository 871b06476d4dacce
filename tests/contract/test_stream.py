"""One stream of gradients, every method, every backend: they must agree.

200 heavy-tailed steps with spikes, zeros, an inf and a NaN (`stream.py`). In float64 the backends
differ from NumPy by rounding alone; in float32 and bfloat16 by a bound that is stated here.

JAX compiles each policy: a second for each, of which the float32 and bfloat16 runs are `slow`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from contract.backends import start
from contract.methods import ROWS
from gradclip import Chain, agc
from gradclip.method.policy import AnyPolicy
from stream import STEPS, stream, weights

Array = np.ndarray[Any, Any]

# JAX counts units on the last axis unless it is told otherwise.
POLICIES = [agc(axis=0) if row.recipe == "agc" else row.policy for row in ROWS]
FAULTS = 80  # After so many steps the NaN and the inf, two spikes and some zeros are past.
_NOTHING = Chain()
_F64, _F32, _BF16 = map(np.dtype, (np.float64, np.float32, ml_dtypes.bfloat16))

# The largest difference allowed, relative to the largest value of the step. PyTorch decides in
# float64 on a CPU whatever the gradients' dtype, so one rounding is left: 6e-8 of each value, and
# a decomposition's 1e-6. JAX without x64 decides, and remembers, in float32: its statistics drift
# by up to 2e-5. In bfloat16 such a drift may turn one rounding: 2⁻⁸ of a value.
BOUNDS = {
    ("torch", _F64): 1e-12,
    ("torch", _F32): 5e-6,
    ("torch", _BF16): 2.0**-8,
    ("jax", _F64): 1e-12,
    ("jax", _F32): 1e-4,
    ("jax", _BF16): 2.0**-7,
}


class Run(NamedTuple):
    """What came of a stream: all values, shape (steps, values), and which steps were skipped."""

    values: Array
    skipped: Array


def _given(dtype: np.dtype[Any], steps: int) -> tuple[list[list[Array]], list[float]]:
    """Return the gradients in a dtype, and the losses."""
    with np.errstate(over="ignore"):
        pairs = [([g.astype(dtype) for g in grads], loss) for grads, loss in stream(steps=steps)]
    return [grads for grads, _ in pairs], [loss for _, loss in pairs]


def _flat(grads: Any) -> Array:
    return np.concatenate([np.asarray(g).astype(np.float64).ravel() for g in grads])


@functools.cache
def run(backend: str, policy: AnyPolicy, dtype: Any, steps: int = STEPS) -> Run:
    """Run a policy over the stream."""
    dtype = np.dtype(dtype)
    params = [w.astype(dtype) for w in weights()]
    grads, losses = _given(dtype, steps)
    if backend == "jax":
        return _scan(policy, params, grads, losses)
    worker = start(backend, list(params), policy)
    found, skipped = [], []
    for given, loss in zip(grads, losses, strict=True):
        after, result = worker.step(list(given), loss)
        found.append(_flat(after))
        skipped.append(bool(result.skipped))
    return Run(np.stack(found), np.asarray(skipped))


def _scan(
    policy: AnyPolicy, params: list[Array], grads: list[list[Array]], losses: list[float]
) -> Run:
    """Run all steps in one compiled scan."""
    import jax
    import jax.numpy as jnp

    import gradclip.jax

    clip = gradclip.jax.clip(policy, max_skips=None)
    with jax.enable_x64(params[0].dtype == np.float64):
        weights = [jnp.asarray(w) for w in params]
        stacked = [jnp.asarray(np.stack(each)) for each in zip(*grads, strict=True)]

        def step(state: Any, given: Any) -> tuple[Any, Any]:
            updates, state = clip.update(given[0], state, weights, loss=given[1])
            return state, (updates, state.last["skipped"])

        every = (stacked, jnp.asarray(losses))
        _, (found, skipped) = jax.lax.scan(step, clip.init(weights), every)
        rows = [np.asarray(f).astype(np.float64).reshape(len(grads), -1) for f in found]
    return Run(np.concatenate(rows, axis=1), np.asarray(skipped))


def largest_difference(one: Run, other: Run) -> float:
    """Return the largest difference, relative to the largest value of its step.

    A skipped step is compared only as such: JAX returns an update of nothing.
    """
    np.testing.assert_array_equal(one.skipped, other.skipped)
    taken = ~one.skipped
    a, b = one.values[taken], other.values[taken]
    assert np.isfinite(a).all()
    scale = np.abs(b).max(axis=1)
    return float((np.abs(a - b).max(axis=1) / np.where(scale > 0, scale, 1)).max(initial=0.0))


def _runs() -> Iterator[Any]:
    """Yield each backend, policy and dtype, and how many steps."""
    for policy in POLICIES:
        for dtype in (_F64, _F32, _BF16):
            for backend in ("kernel", "fallback", "device", "jax"):
                if backend == "fallback" and dtype != _F64:
                    continue
                slow = backend == "jax" and dtype != _F64
                long = dtype == _F64 and backend != "fallback"
                yield pytest.param(
                    backend,
                    policy,
                    dtype,
                    STEPS if long else FAULTS,
                    id=f"{policy}-{backend}-{dtype}",
                    marks=[pytest.mark.slow] if slow else [],
                )


@pytest.mark.parametrize(("backend", "policy", "dtype", "steps"), list(_runs()))
def test_agrees_with_numpy(
    backend: str, policy: AnyPolicy, dtype: np.dtype[Any], steps: int
) -> None:
    numpy = run("numpy", policy, dtype, STEPS if dtype == _F64 else steps)
    numpy = Run(numpy.values[:steps], numpy.skipped[:steps])
    bound = BOUNDS["jax" if backend == "jax" else "torch", dtype]
    assert largest_difference(run(backend, policy, dtype, steps), numpy) < bound


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_stream_is_worth_running(policy: AnyPolicy) -> None:
    """Each method does something to it; some steps are skipped, others not."""
    done, left = run("numpy", policy, _F64), run("numpy", _NOTHING, _F64)
    assert done.skipped[[50, 70]].all()
    assert not done.skipped.all()
    if set(np.flatnonzero(done.skipped)) == {50, 70}:
        assert largest_difference(done, left) > 1e-3
    else:
        assert done.skipped.sum() > 3
