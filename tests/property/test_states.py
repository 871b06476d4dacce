"""A state is somebody's data: it is loaded as a whole, or refused by name and nothing has moved."""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradclip.numpy
from attached import as_if_attached
from contract.methods import ROWS
from gradclip import PolicyError, autoclip, by_norm, by_value, with_feedback, zclip
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper
from gradclip.torch.in_backward import InBackward, attach_in_backward

POLICIES = {str(row.policy): row.policy for row in ROWS if row.traits.memory} | {
    "chain": with_feedback(by_value(0.5) | zclip(warmup=3)) | autoclip(50, window=9),
    "fixed": by_norm(1.0),
}
SHAPES = {"a": (3, 2), "b": (4,)}
JUNK: list[Any] = [
    None,
    True,
    -1,
    2.5,
    1 << 70,
    "norm:1",
    b"",
    [],
    {},
    object(),
    torch.zeros(3),
    torch.zeros(()),
    torch.zeros(2, device="meta"),
    torch.tensor(3),
    np.zeros(2),
    [[{}]],
    {"count": 1},
]
BAD_VALUES = (math.nan, math.inf, -math.inf, -1e30, 0.5, 1e17, 1e30, -0.0)


def _clipper(policy: AnyPolicy) -> Clipper:
    params = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    clipper = Clipper(params.items(), policy)
    as_if_attached(clipper)
    return clipper


def _step(clipper: Clipper, seed: int) -> list[bytes]:
    generator = torch.Generator().manual_seed(seed)
    for param in clipper.params:
        param.grad = torch.randn(param.shape, generator=generator) * (1 + seed % 3)
    clipper.clip_(loss=1.0 + seed % 4)
    for param in clipper.params:
        assert param.grad is not None
        assert torch.isfinite(param.grad).all()
    return [param.grad.numpy().tobytes() for param in clipper.params if param.grad is not None]


def _bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in a state, with each key or index in it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def mutate(state: Any, rng: random.Random) -> None:
    """Change one thing anywhere in a state."""
    holder, key = rng.choice(list(_places(state)))
    value = holder[key]
    changes: list[Callable[[], Any]] = [lambda: copy.deepcopy(rng.choice(JUNK))]
    if isinstance(holder, dict):
        changes.append(lambda: holder.pop(key))
        changes.append(lambda: holder.__setitem__(rng.choice(["new", "9", 7, None]), value))
    else:
        changes.append(lambda: holder.append(value))
        changes.append(lambda: holder.pop())
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and not value.is_meta):
        changes += 3 * [lambda: _changed(value, rng)]
    before = len(holder)
    new = rng.choice(changes)()
    if len(holder) == before and key in (holder if isinstance(holder, dict) else range(before)):
        holder[key] = new if new is not None or rng.random() < 0.5 else value


def _changed(value: Any, rng: random.Random) -> Any:
    """Return an array of another dtype, another shape or with another value in it."""
    is_torch = isinstance(value, Tensor)
    array = value.numpy().copy() if is_torch else value.copy()
    kind = rng.randrange(4)
    if kind == 0:
        names = ("float16", "int64", "bool", "complex64", "float32", "float64")
        with np.errstate(all="ignore"):
            array = np.nan_to_num(array).astype(rng.choice(names))
    elif kind == 1:
        flat = array.reshape(-1)
        shapes = [array[None], flat, flat[:0], np.concatenate([flat, flat])]
        array = rng.choice(shapes)
    elif array.size and array.dtype.kind == "f":
        flat = array.reshape(-1)
        flat[rng.randrange(flat.size)] = rng.choice(BAD_VALUES)
        if kind == 3:
            flat[:] = flat[rng.randrange(flat.size)]
    return torch.from_numpy(np.array(array)) if is_torch else array


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_changed_state_is_loaded_whole_or_refused(name: str, seed: int) -> None:
    rng = random.Random(seed)
    saved, clipper, twin = (_clipper(POLICIES[name]) for _ in range(3))
    for step in range(rng.randrange(12)):
        _step(saved, step)
    for step in range(rng.randrange(3)):
        _step(clipper, step)
        _step(twin, step)
    state = copy.deepcopy(saved.state_dict())
    for _ in range(rng.choice((1, 1, 2))):
        mutate(state, rng)
    before = _bytes(clipper.state_dict())
    try:
        clipper.load_state_dict(state)
    except PolicyError:
        assert _bytes(clipper.state_dict()) == before
        assert _step(clipper, 5) == _step(twin, 5)
    else:
        assert clipper.clipped <= clipper.steps
        for step in range(4):
            _step(clipper, step)


@pytest.mark.parametrize("name", POLICIES)
def test_each_honest_state_is_loaded(name: str) -> None:
    saved = _clipper(POLICIES[name])
    for step in range(14):
        other = _clipper(POLICIES[name])
        other.load_state_dict(saved.state_dict())
        assert _bytes(other.state_dict()) == _bytes(saved.state_dict())
        assert _step(other, step) == _step(saved, step)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_numpy_takes_a_whole_state_or_refuses_it(name: str, seed: int) -> None:
    rng = random.Random(seed)
    state: Any = None
    for step in range(1 + rng.randrange(8)):
        _, state, _ = gradclip.numpy.clip(_arrays(step), POLICIES[name], state, loss=1.0 + step)
    state = copy.deepcopy(state)
    mutate(state, rng)
    kept = repr(state)
    try:
        out, _, _ = gradclip.numpy.clip(_arrays(3), POLICIES[name], state, loss=2.0)
    except PolicyError:
        pass
    else:
        assert all(np.isfinite(array).all() for array in out.values())
    assert repr(state) == kept


def _arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def _in_backward(policy: AnyPolicy | str) -> tuple[InBackward, Callable[[int], None]]:
    model = torch.nn.Linear(2, 3)
    optimizers = {p: torch.optim.SGD([p], lr=1e-3) for p in model.parameters()}

    def step(param: Tensor) -> None:
        optimizers[param].step()  # type: ignore[index]
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(step)
    clipper = attach_in_backward(optimizers.values(), policy, model=model)

    def backward(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        model(torch.randn(4, 2, generator=generator)).square().sum().backward()
        assert all(torch.isfinite(p).all() for p in model.parameters())

    return clipper, backward


@pytest.mark.parametrize("policy", ["zclip:warmup=2", "norm:1.0", "adagc:warmup=2", "spam:0.5"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_in_backward_loads_a_whole_state_or_refuses_it(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    saved, run = _in_backward(policy)
    for step in range(rng.randrange(5)):
        run(step)
    clipper, go_on = _in_backward(policy)
    go_on(0)
    state = copy.deepcopy(saved.state_dict())
    mutate(state, rng)
    before = _bytes(clipper.state_dict())
    try:
        clipper.load_state_dict(state)
    except PolicyError:
        assert _bytes(clipper.state_dict()) == before
    for step in range(3):
        go_on(step)
    assert clipper.steps >= 3


@pytest.mark.parametrize(
    ("policy", "entry", "value", "told"),
    [
        ("zclip", "mean", -1.0, r"memory\[0\]\[0\]\['mean'\].*never negative"),
        ("zclip", "variance", math.nan, r"'variance'.*never holds inf or NaN"),
        ("zclip", "count", 2.5, r"'count'.*whole number"),
        ("autoclip:10", "history", -1.0, "this entry is never negative"),
        ("autoclip:10", "count", 3.0, "it holds another number of values than count"),
        ("autoclip:10", "ordered", 1.0, "ordered holds other values than history"),
    ],
)
def test_the_refusal_names_the_entry(policy: str, entry: str, value: float, told: str) -> None:
    clipper = _clipper(zclip() if policy == "zclip" else autoclip(10))
    for step in range(5):
        _step(clipper, step)
    state = clipper.state_dict()
    state["memory"][0][0][entry].fill_(value)
    with pytest.raises(PolicyError, match=told):
        clipper.load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"clipped": 7}, "clipped=7 is not usable: steps is only 2"),
        ({"in_a_row": 1}, "in_a_row=1 is not usable: skipped is only 0"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"new": 1}, "these keys are unknown"),
        ({"names": [["a"], {}]}, "give a list of names"),
        ({"policy": 7}, "policy=7"),
        ({"schema": torch.ones(2)}, "schema=tensor"),
    ],
)
def test_counters_and_keys_are_checked(changed: dict[str, Any], told: str) -> None:
    clipper = _clipper(zclip())
    for step in range(2):
        _step(clipper, step)
    before = _bytes(clipper.state_dict())
    with pytest.raises(PolicyError) as caught:
        clipper.load_state_dict({**clipper.state_dict(), **changed})
    assert told in str(caught.value)
    assert _bytes(clipper.state_dict()) == before


def test_what_is_no_state_is_refused() -> None:
    for junk in JUNK:
        with pytest.raises(PolicyError):
            _clipper(zclip()).load_state_dict(junk)
        with pytest.raises(PolicyError):
            _in_backward("norm:1.0")[0].load_state_dict(junk)
