"""A limit that moves: each step is clipped as the plain limit of that step would clip the step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import gradclip
import gradclip.jax
import gradclip.numpy
from contract.backends import BACKENDS, start
from gradclip import Policy, PolicyError, by_name, by_norm, by_value, parse
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.facts import facts_of
from gradclip.parts import Context, Fixed, Moving, Ramp, Rescale
from gradclip.torch import Clipper

STEPS = 4
WEIGHTS = [np.asarray([[1.0, -2.0, 0.5], [0.1, 0.2, -0.3]]), np.asarray([2.0, -1.0])]
GRADS = [np.asarray([[3.0, -4.0, 0.1], [0.2, -0.1, 0.3]]), np.asarray([0.05, 1.5])]
PLAN = (0.8, 0.5, 0.2, 0.2)
RAMP = Ramp(0.8, 0.2, 2)


def _movable() -> list[tuple[str, str]]:
    """Return each recipe's arguments that may move."""
    return [
        (name, argument)
        for name, row in CATALOGUE.items()
        for argument, of in inspect.signature(row.function).parameters.items()
        if "Limit" in str(of.annotation)
    ]


MOVABLE = _movable()


def _asked(name: str, argument: str, limit: Any) -> Any:
    """Return the policy of a call with one limit, and a fixed other end where there is one."""
    rest = {"min_norm": {"max_norm": 5.0}, "max_norm": {"min_norm": 0.1}} if name == "band" else {}
    if argument == "limit" and name == "value":
        return by_value(limit)
    named = {**rest.get(argument, {}), argument: limit}
    if name == "agc":
        named["axis"] = 0
    return CATALOGUE[name].function(**named)


def _function(step: Any) -> Any:
    """Return the limit of a step, of a whole number or of an array of JAX's."""
    if isinstance(step, int):
        return PLAN[step]
    return jnp.asarray(PLAN)[step]


KINDS: dict[str, Any] = {"a ramp": RAMP, "a function": _function}


def test_all_limits_that_are_given_may_move() -> None:
    """Wrappers leave the limit to the policy inside; update_rms bounds updates by one number."""
    given = {row.name for row in CATALOGUE.values() if facts_of(row.policy).adapts == "no"}
    wrappers = {"feedback", "clip21", "centered"}
    assert given - {name for name, _ in MOVABLE} == wrappers | {"update_rms"}
    assert ("skip_above", "max_norm") in MOVABLE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "argument"), MOVABLE)
def test_each_step_has_its_own_limit(name: str, argument: str, backend: str, kind: str) -> None:
    worker = start(backend, list(WEIGHTS), _asked(name, argument, KINDS[kind]))
    for limit in PLAN:
        found, result = worker.step(list(GRADS))
        plain = start("numpy", list(WEIGHTS), _asked(name, argument, limit))
        wanted, expected = plain.step(list(GRADS))
        if backend == "jax" and bool(expected.skipped):
            wanted = [np.zeros_like(each) for each in wanted]  # There an update is left out so.
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=0)
        np.testing.assert_allclose(float(result.limit), float(expected.limit), rtol=1e-9)
        assert bool(result.skipped) == bool(expected.skipped)


@pytest.mark.parametrize("backend", ["kernel", "fallback", "device"])
@pytest.mark.parametrize(("name", "argument"), MOVABLE)
def test_a_tensor_is_looked_at_each_step(name: str, argument: str, backend: str) -> None:
    limit = torch.tensor(1.0, dtype=torch.float64)
    worker = start(backend, list(WEIGHTS), _asked(name, argument, limit))
    for value in PLAN:
        limit.fill_(value)
        found, _ = worker.step(list(GRADS))
        wanted, _ = start("numpy", list(WEIGHTS), _asked(name, argument, value)).step(list(GRADS))
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "argument"), MOVABLE)
def test_optax_injects_a_schedule(name: str, argument: str) -> None:
    def made(limit: Any) -> optax.GradientTransformation:
        return gradclip.jax.clip(_asked(name, argument, limit))

    with jax.enable_x64(True):
        schedule = optax.linear_schedule(0.8, 0.2, 2)
        tx = optax.inject_hyperparams(made)(limit=schedule)
        params, grads = [jnp.asarray(w) for w in WEIGHTS], [jnp.asarray(g) for g in GRADS]
        state, update = tx.init(params), jax.jit(tx.update)
        for limit in PLAN:
            found, state = update(grads, state, params)
            plain = start("numpy", list(WEIGHTS), _asked(name, argument, limit))
            wanted, result = plain.step(list(GRADS))
            for mine, theirs in zip(found, wanted, strict=True):
                theirs = np.zeros_like(theirs) if bool(result.skipped) else theirs
                np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(1, 50), st.integers(0, 100))
def test_a_ramp_is_a_straight_line(first: float, last: float, steps: int, step: int) -> None:
    ramp = Ramp(first, last, steps)
    exact = first + (last - first) * min(step / steps, 1.0)
    assert ramp.at(step, np) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    assert float(ramp.at(np.asarray(step), np)) == ramp.at(step, np)
    assert (ramp.at(0, np), ramp.at(steps, np)) == (first, last)


@pytest.mark.parametrize("text", ["norm:1->0.1@1000", "norm: 1.0 -> 1e-1 @ 1000"])
def test_a_ramp_in_text(text: str) -> None:
    policy = parse(text)
    assert policy == by_norm(Ramp(1.0, 0.1, 1000))
    assert str(policy) == "norm:1.0->0.1@1000"
    assert str(parse("a.*=value:-1->-0.5@10,0.5;*=norm:1")) == (
        "a.*=value:-1.0->-0.5@10,0.5;*=norm:1"
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("norm:1->0.1", "in how many steps"),
        ("norm:1->0.1@0", "steps=0"),
        ("norm:1->x@5", "end='x'"),
        ("norm:-1->1@5", "max_norm=-1.0"),
        ("norm:1->inf@5", "end=inf"),
        ("norm:1->2->3@4", "2->3"),
        ("autoclip:1->2@3", "Ramp"),
    ],
)
def test_a_wrong_ramp_is_refused(text: str, word: str) -> None:
    with pytest.raises(PolicyError, match=word):
        parse(text)


def _gives(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


@pytest.mark.parametrize("value", [float("nan"), "1", None, np.ones(2), torch.ones(1, 1)])
@pytest.mark.parametrize("policy", [by_norm, by_value])
def test_a_wrong_limit_is_refused_before_a_gradient_changes(
    policy: Callable[[Any], Any], value: Any
) -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    clipper = Clipper([param], policy(_gives(value)))
    with pytest.raises(PolicyError, match="limit="):
        clipper.clip_()
    assert param.grad.tolist() == [3.0, 4.0]
    assert clipper.steps == 0
    with pytest.raises(PolicyError, match="limit="):
        gradclip.numpy.clip([np.asarray([3.0, 4.0])], policy(_gives(value)))


def test_the_ends_may_not_cross() -> None:
    with pytest.raises(PolicyError, match=r"low=2\.0"):
        gradclip.numpy.clip([np.ones(2)], by_value(_gives(2.0), 1.0))
    with pytest.raises(PolicyError, match="symmetric"):
        Moving(1.0, -1.0, symmetric=True)
    with pytest.raises(PolicyError, match="high=None"):
        Moving()


def test_a_norm_has_no_negative_limit() -> None:
    limits, _ = Moving(_gives(-1.0), least=0.0).update({}, np.ones(1), Context(), np)
    assert limits.high == 0.0
    found, _, _ = gradclip.numpy.clip([np.asarray([3.0])], by_norm(_gives(-1.0)))
    assert found[0].tolist() == [0.0]


def test_a_run_goes_on_where_it_was() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    first, second = (Clipper([("w", param)], "norm:1->0.5@10") for _ in range(2))
    limits = []
    for step in range(6):
        clipper = first if step < 3 else second
        if step == 3:
            second.load_state_dict(first.state_dict())
        param.grad = torch.tensor([3.0, 4.0])
        limits.append(float(clipper.clip_().limit))
    assert limits == pytest.approx([1.0 - 0.05 * step for step in range(6)])


def test_what_is_followed_is_named_and_not_valued() -> None:
    tensor = torch.tensor(1.0)
    policy = by_norm(tensor)
    before = str(policy), repr(policy), hash(policy)
    tensor.fill_(2.0)
    assert (str(policy), repr(policy), hash(policy)) == before
    assert "torch.Tensor" in before[0]
    assert policy == by_norm(tensor) != by_norm(torch.tensor(2.0))
    assert f"{__name__}._function" in str(by_norm(_function))
    with pytest.raises(PolicyError, match="kind"):
        parse(str(policy))


def test_a_checkpoint_with_a_function_is_read() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    saved = Clipper([("w", param)], by_norm(_function)).state_dict()
    Clipper([("w", param)], by_norm(_function)).load_state_dict(saved)
    other = Clipper([("w", param)], by_norm(_gives(1.0)))
    with pytest.raises(PolicyError, match="policy"):
        other.load_state_dict(saved)
    assert other.steps == 0


def test_numbers_of_libraries_stay_numbers() -> None:
    for one in (np.float32(1), np.asarray(1.0), 1, True + 0.0):
        assert by_norm(one).threshold == Fixed(high=1.0)  # type: ignore[arg-type]
    assert by_norm(1.0, order=torch.tensor(2.0)).threshold == Fixed(high=1.0)  # type: ignore[arg-type]


def test_a_state_of_numpy_without_steps_begins_at_the_first() -> None:
    grads = [np.asarray([3.0, 4.0])]
    _, state, _ = gradclip.numpy.clip(grads, "norm:1->0.5@2")
    assert state["steps"] == 1
    old = {key: value for key, value in state.items() if key != "steps"}
    _, _, result = gradclip.numpy.clip(grads, "norm:1->0.5@2", old)
    assert float(result.limit) == 1.0
    with pytest.raises(PolicyError, match=r"state\.steps=-1"):
        gradclip.numpy.clip(grads, "norm:1->0.5@2", {**state, "steps": -1})


class _Reads(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read back"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "argument"), MOVABLE)
def test_a_device_is_not_waited_for(name: str, argument: str, on_path: Any) -> None:
    limit = torch.tensor(0.5, dtype=torch.float64)
    params = [torch.nn.Parameter(torch.from_numpy(w)) for w in WEIGHTS]
    for param, grad in zip(params, GRADS, strict=True):
        param.grad = torch.from_numpy(grad.copy())
    clipper = Clipper(params, _asked(name, argument, limit))
    with on_path("device"), _Reads():
        result = clipper.clip_()
    assert (
        float(result.limit) == 0.5
        or name in ("agc", "per_layer")
        or argument in ("min", "min_norm")
    )


def test_rules_by_name_each_have_their_own() -> None:
    rules = by_name({"a": by_norm(Ramp(1.0, 0.5, 1)), "*": Policy(*_parts())})
    grads = {"a": np.asarray([3.0, 4.0]), "b": np.asarray([3.0, 4.0])}
    state: Any = None
    for wanted in (1.0, 0.5):
        found, state, _ = gradclip.numpy.clip(grads, rules, state)
        assert np.linalg.norm(found["a"]) == pytest.approx(wanted)
        assert np.linalg.norm(found["b"]) == pytest.approx(2.0)


def _parts() -> tuple[Any, Any, Any]:
    return gradclip.Measure(), Moving(_gives(2.0)), Rescale()
