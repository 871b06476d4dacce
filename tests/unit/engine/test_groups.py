"""A policy for each group of names, in one pass: as if each group had a clipper of its own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import gradclip.numpy
from attached import as_if_attached
from contract.backends import Arrays, start
from gradclip import (
    Chain,
    PolicyError,
    adagc,
    by_name,
    by_norm,
    by_value,
    skip_above,
    spam,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper, attach
from stream import stream

Array = np.ndarray[Any, Any]
Named = dict[str, Array]

SHAPES = {
    "embed.weight": (4, 3),
    "embed_positions.weight": (2, 3),
    "layers.0.weight": (3, 3),
    "layers.0.bias": (3,),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
ZCLIP = zclip(1.0, warmup=3)
RULES = {"embed*": by_norm(0.5), "*.bias": None, "*": ZCLIP}
GROUPS: dict[str, tuple[AnyPolicy, list[str]]] = {
    "embed*": (by_norm(0.5), ["embed.weight", "embed_positions.weight"]),
    "*.bias": (Chain(), ["layers.0.bias", "head.bias"]),
    "*": (ZCLIP, ["layers.0.weight", "head.weight"]),
}


def _steps(count: int = 40) -> list[Named]:
    rng = np.random.default_rng(4)
    found = []
    for step in range(count):
        size = 30.0 if step % 11 == 7 else 1.0
        found.append({n: np.asarray(size * rng.normal(size=s)) for n, s in SHAPES.items()})
    return found


def _apart() -> list[Named]:
    """Return what three clippers, one for each group, make of the stream."""
    states: dict[str, Any] = dict.fromkeys(GROUPS)
    found = []
    for grads in _steps():
        done: Named = {}
        for pattern, (policy, names) in GROUPS.items():
            mine = {name: grads[name] for name in names}
            after, states[pattern], _ = gradclip.numpy.clip(mine, policy, states[pattern])
            done |= after
        found.append(done)
    return found


def _assert_as_apart(found: list[Named], rtol: float = 1e-14) -> None:
    changed: dict[str, int] = dict.fromkeys(SHAPES, 0)
    for done, expected, raw in zip(found, _apart(), _steps(), strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(done[name], expected[name], rtol=rtol, atol=0, err_msg=name)
            changed[name] += not np.array_equal(expected[name], raw[name])
    # The embeddings always, the others where there is a spike, the biases never.
    for pattern, (least, most) in {"embed*": (40, 40), "*.bias": (0, 0), "*": (4, 20)}.items():
        assert all(least <= changed[name] <= most for name in GROUPS[pattern][1]), changed


def test_numpy_treats_each_group_as_if_alone() -> None:
    state: Any = None
    found = []
    for grads in _steps():
        after, state, _ = gradclip.numpy.clip(grads, RULES, state)
        found.append(after)
    _assert_as_apart(found)


@pytest.mark.usefixtures("path")
def test_torch_treats_each_group_as_if_alone() -> None:
    params = {n: torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for n, s in SHAPES.items()}
    clipper = Clipper(params.items(), RULES)
    found = []
    for grads in _steps():
        for name, param in params.items():
            param.grad = torch.tensor(grads[name])
        clipper.clip_()
        found.append({n: p.grad.numpy().copy() for n, p in params.items() if p.grad is not None})
    _assert_as_apart(found)


def test_jax_treats_each_group_as_if_alone() -> None:
    """The names are the keys of the tree, joined by dots."""
    jax = pytest.importorskip("jax")
    import gradclip.jax

    clip = gradclip.jax.clip(RULES, max_skips=None)

    def nested(flat: Named) -> dict[str, Any]:
        return {
            "embed": {"weight": flat["embed.weight"]},
            "embed_positions": {"weight": flat["embed_positions.weight"]},
            "layers": [{"weight": flat["layers.0.weight"], "bias": flat["layers.0.bias"]}],
            "head": {"weight": flat["head.weight"], "bias": flat["head.bias"]},
        }

    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *map(nested, _steps()))
        state = clip.init(nested(_steps()[0]))
        _, out = jax.lax.scan(lambda s, g: clip.update(g, s)[::-1], state, stacked)
        pairs, _ = jax.tree_util.tree_flatten_with_path(out)
        name_of = jax.tree_util.keystr
        flat = {name_of(p, simple=True, separator="."): np.asarray(x) for p, x in pairs}
    _assert_as_apart([{n: flat[n][i] for n in SHAPES} for i in range(40)], rtol=1e-12)


def test_attach_takes_the_names_of_the_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clipper = attach(optimizer, {"0.*": by_norm(1e-3), "*.bias": None, "*": zclip()}, model=model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    (100 * model(torch.ones(8, 3))).pow(2).sum().backward()
    raw = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    moved = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    first = torch.cat([moved["0.weight"].reshape(-1), moved["0.bias"]])
    assert float(first.norm()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(moved["1.bias"], raw["1.bias"])
    clipper.detach()


# ---- the memories --------------------------------------------------------------------------


def _memory(state: Any, stage: int) -> dict[str, Any]:
    return state["memory"][0][stage]


def test_each_group_has_a_memory_of_its_own() -> None:
    policy = by_name({"a*": zclip(warmup=3), "b*": zclip(warmup=3)})
    state: Any = None
    for _ in range(4):
        grads = {"a1": np.ones(1), "b1": 10 * np.ones(1), "a2": np.zeros(1)}
        _, state, _ = gradclip.numpy.clip(grads, policy, state)
    assert _memory(state, 0)["mean"].tolist() == [1]
    assert _memory(state, 1)["mean"].tolist() == [10]


def test_what_happens_in_one_group_leaves_the_others_memory() -> None:
    policy = by_name({"a": adagc(warmup=0), "b": spam(warmup=0), "c": with_feedback(by_norm(1.0))})
    state: Any = None
    found = []
    for size in (1.0, 1.0, 50.0):
        grads = {"b": np.ones(2), "a": size * np.ones(2), "c": np.asarray([3.0, 4.0])}
        _, state, _ = gradclip.numpy.clip(grads, policy, state)
        alone: Any = found[-1][1] if found else None
        rest = {"b": grads["b"], "c": grads["c"]}
        only = by_name(dict(policy.rules[1:]))
        _, alone, _ = gradclip.numpy.clip(rest, only, alone)
        found.append((copy.deepcopy(state), alone))
    together, alone = found[-1]
    np.testing.assert_array_equal(
        _memory(together, 1)["0"]["moment"], _memory(alone, 0)["0"]["moment"]
    )
    carry = [m["source"] for m in (_memory(together, 2), _memory(alone, 1))]
    np.testing.assert_array_equal(carry[0]["2"]["carry"], carry[1]["1"]["carry"])


def test_groups_of_chains_of_different_lengths() -> None:
    rules = {"a": by_value(2.0) | by_norm(1.0) | by_value(0.5), "b": by_norm(1.0), "c": None}
    grads = {"a": np.asarray([3.0, 4.0]), "b": np.asarray([3.0, 4.0]), "c": np.asarray([3.0, 4.0])}
    after, _, _ = gradclip.numpy.clip(grads, rules)
    np.testing.assert_allclose(after["a"], [0.5, 0.5])
    np.testing.assert_allclose(after["b"], [0.6, 0.8])
    np.testing.assert_array_equal(after["c"], [3, 4])


@pytest.mark.usefixtures("path")
def test_an_inf_in_one_group_skips_the_whole_step() -> None:
    params = {n: torch.nn.Parameter(torch.zeros(2)) for n in ("embed", "x.bias", "x.weight")}
    clipper = Clipper(params.items(), RULES)
    as_if_attached(clipper)  # As if attached: no warning of a skip.
    for name, param in params.items():
        param.grad = torch.tensor([3.0, float("inf") if name == "x.bias" else 4.0])
    result = clipper.clip_()
    assert bool(result.skipped)
    assert result.nonfinite == ("x.bias",)
    assert params["embed"].grad is not None
    assert params["embed"].grad.tolist() == [3, 4]


# ---- names ---------------------------------------------------------------------------------


def test_the_first_pattern_that_matches_wins() -> None:
    grads = {"embed.bias": np.asarray([3.0, 4.0]), "x.bias": np.ones(2), "x": np.ones(2)}
    after, _, _ = gradclip.numpy.clip(grads, RULES)
    np.testing.assert_allclose(after["embed.bias"], [0.3, 0.4])
    swapped = {"*.bias": None, "embed*": by_norm(0.5), "*": None}
    with pytest.raises(PolicyError, match=r"pattern='embed\*'.*an earlier pattern left"):
        gradclip.numpy.clip(grads, swapped)


def test_a_name_that_no_pattern_matches_is_refused_unless_there_is_a_star() -> None:
    rules = {"embed*": by_norm(0.5), "*.bias": None}
    grads = {"embed": np.ones(2), "x.bias": np.ones(2), "head.weight": np.ones(2)}
    with pytest.raises(PolicyError, match=r"parameter='head\.weight'.*add '\*' for all other"):
        gradclip.numpy.clip(grads, rules)
    params = {name: torch.nn.Parameter(torch.zeros(2)) for name in grads}
    with pytest.raises(PolicyError, match=r"parameter='head\.weight'.*add '\*' for all other"):
        Clipper(params.items(), rules)
    gradclip.numpy.clip(grads, {**rules, "*": None})


def test_jax_refuses_a_name_that_no_pattern_matches() -> None:
    pytest.importorskip("jax")
    import gradclip.jax

    clip = gradclip.jax.clip({"embed*": by_norm(0.5)})
    with pytest.raises(PolicyError, match=r"parameter='head\.weight'.*add '\*' for all other"):
        clip.init({"embed": np.ones(2), "head": {"weight": np.ones(2)}})


@pytest.mark.parametrize("backend", ["numpy", "kernel", "fallback", "device"])
def test_a_group_may_be_missing_for_a_step(backend: str) -> None:
    """No gradient at all in a group: its memory stays, and the others go on."""
    policy = by_name({"0": adagc(warmup=0), "1": zclip(warmup=2), "*": skip_above(1e9)})
    weights: Arrays = [np.zeros(2), np.zeros(2), np.zeros(3)]
    steps = start(backend, weights, policy)
    for grads, _ in list(stream(steps=4)):
        whole: Arrays = [grads[1][:2], grads[1][1:], grads[0][0]]
        steps.step(whole)
    before = steps.memory()
    after, _ = steps.step([np.ones(2), None, np.ones(3)])
    assert after[1] is None
    # In order: adagc's count and averages, then zclip's count, mean and variance.
    now = steps.memory()
    assert (now[0] == before[0] + 1).all()
    for a, b in zip(now[2:], before[2:], strict=True):
        np.testing.assert_array_equal(a, b)
