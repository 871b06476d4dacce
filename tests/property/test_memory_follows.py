"""A memory belongs to what it is about, whatever becomes of the parameters and of the policy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.methods import ROWS
from gradclip import (
    Measure,
    Policy,
    PolicyError,
    adagc,
    autoclip,
    by_name,
    by_norm,
    by_value,
    quantile,
    spam,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy
from gradclip.parts import Rescale
from gradclip.torch import Clipper, attach, attach_in_backward

BY_UNIT = {
    f"unit {axis}": Policy(Measure("unit", axis=axis), zclip(warmup=2).threshold, Rescale())
    for axis in (None, 0)
}
POLICIES: dict[str, AnyPolicy] = (
    {str(row.policy): row.policy for row in ROWS if "loss" not in str(row.policy)}
    | BY_UNIT
    | {
        "chain": with_feedback(by_value(0.5) | zclip(warmup=3)) | autoclip(50, window=9),
        "by-name": by_name({"0.*": adagc(warmup=2), "*": zclip(warmup=2) | spam(0.5, warmup=1)}),
    }
)


class Net(torch.nn.Module):
    """Layers of which any may be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3))
        for name, module in list(self.layers.named_children()):
            self.add_module(name, module)
        del self.layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            x = module(x)
        return x


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 3, generator=generator)).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def _replace(module: torch.nn.Module, optimizer: torch.optim.Optimizer, shape: Any) -> None:
    """Put another parameter in the place of a weight, as pruning and splatting do."""
    for group in optimizer.param_groups:
        for place, param in enumerate(group["params"]):
            if param is module.weight:
                new = torch.nn.Parameter(torch.randn(shape) * 0.1)
                module.weight = new
                group["params"][place] = new


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_change_of_the_parameters_stops_a_step(name: str, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(0)
    model = Net()
    start = list(model.get_submodule("0").parameters())
    optimizer = torch.optim.SGD(start, lr=1e-4)
    clipper = attach(optimizer, POLICIES[name], model=model, max_skips=99)
    added = {"0"}
    for step in range(12):
        where = rng.choice(["0", "1", "2"])
        module = model.get_submodule(where)
        match rng.randrange(6):
            case 0 if where not in added:
                optimizer.add_param_group({"params": list(module.parameters())})
                added.add(where)
            case 1:
                _replace(module, optimizer, (3, 3))
            case 2:
                module.weight.requires_grad_(not module.weight.requires_grad)  # type: ignore[union-attr]
            case 3:
                clipper.load_state_dict(clipper.state_dict())
            case 4 if len(optimizer.param_groups) > 1:
                optimizer.param_groups.reverse()
            case _:
                pass
        if any(p.requires_grad for p in model.parameters()):
            _step(model, optimizer, step)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("policy", [zclip(), autoclip(), quantile(), "mean_std", "moving_average"])
def test_one_memory_for_all_survives(policy: Any) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.get_submodule("0").parameters(), lr=1e-4)
    clipper = attach(optimizer, policy, model=model)
    for step in range(4):
        _step(model, optimizer, step)
    before = _flat(clipper)
    optimizer.add_param_group({"params": list(model.get_submodule("1").parameters())})
    clipper.rebind([(n, p) for n, p in model.named_parameters() if n[0] in "01"])
    assert _flat(clipper) == before
    _replace(model.get_submodule("0"), optimizer, (3, 3))
    _step(model, optimizer, 9)
    memory = clipper.state_dict()["memory"][0][0]
    assert memory["count"].tolist() == [5]


def _flat(clipper: Clipper) -> str:
    return repr(clipper.state_dict()["memory"])


def _steps(clipper: Clipper, count: int) -> None:
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for param in clipper.params:
            param.grad = torch.randn(param.shape, generator=generator)
        clipper.clip_()


def _params(*shapes: tuple[int, ...]) -> list[tuple[str, torch.nn.Parameter]]:
    return [("abcdef"[i], torch.nn.Parameter(torch.ones(s))) for i, s in enumerate(shapes)]


def test_values_follow_their_parameter_and_units_theirs() -> None:
    unit = BY_UNIT["unit None"]
    named = _params((2, 3), (4, 2), (5,))
    clipper = Clipper(named, spam(0.5, warmup=1) | unit)
    _steps(clipper, 3)
    values, units = (layer[0] for layer in clipper.state_dict()["memory"])
    new = ("new", torch.nn.Parameter(torch.ones(2, 2)))
    clipper.rebind([named[2], new, named[0]])
    after, rows = (layer[0] for layer in clipper.state_dict()["memory"])
    assert torch.equal(after["0"]["moment"], values["2"]["moment"])
    assert torch.equal(after["2"]["moment"], values["0"]["moment"])
    assert "1" not in after
    assert rows["count"].tolist() == [3, 0, 0, 3, 3]
    mean = units["mean"].tolist()
    assert rows["mean"].tolist() == [mean[6], 0, 0, mean[0], mean[1]]


def test_a_parameter_of_another_shape_under_its_name_begins_anew() -> None:
    named = _params((2, 3), (4,))
    clipper = Clipper(named, with_feedback(by_norm(0.5)) | adagc(warmup=1))
    _steps(clipper, 3)
    before = clipper.state_dict()["memory"]
    clipper.rebind([("a", torch.nn.Parameter(torch.ones(5, 3))), named[1]])
    source, adagc_after = (layer[0] for layer in clipper.state_dict()["memory"])
    assert list(source["source"]) == ["1"]
    assert torch.equal(source["source"]["1"]["carry"], before[0][0]["source"]["1"]["carry"])
    assert torch.equal(adagc_after["own"], before[1][0]["own"])  # The norm is the tensor's still.
    _steps(clipper, 1)


def test_a_parameter_that_grows_in_place_is_noticed() -> None:
    named = _params((2, 3), (4,))
    clipper = Clipper(named, with_feedback(by_norm(0.5)) | BY_UNIT["unit None"])
    _steps(clipper, 2)
    named[0][1].data = torch.ones(6, 3)
    named[0][1].grad = None
    _steps(clipper, 1)
    assert clipper.state_dict()["memory"][1][0]["count"].tolist() == [1] * 6 + [3]


@pytest.mark.parametrize("policy", ["zclip:warmup=2", "norm:1.0", "adagc:warmup=2", "spam:0.5"])
def test_in_backward_a_replaced_parameter_is_followed(policy: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=1e-3) for layer in model]
    clipper = attach_in_backward(optimizers, policy, model=model)

    def step() -> None:
        model(torch.randn(4, 3) * 10).square().sum().backward()
        for optimizer in reversed(optimizers):
            optimizer.step()

    for _ in range(3):
        step()
    kept = clipper.state_dict()
    weight = model[0].weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizers[0].param_groups[0]["params"][0] = weight
    extra = torch.nn.Parameter(torch.ones(2))
    optimizers[1].add_param_group({"params": [extra]})
    extra.grad = torch.full((2,), 100.0)
    step()
    assert clipper.last is not None
    assert len(clipper.names) == 5
    assert clipper.last.norms.shape == (5,)
    after = clipper.state_dict()
    if policy.startswith("zclip"):
        assert after["memory"][0][0]["count"].tolist() == [4]
    if policy.startswith("adagc"):
        counts = [part[0][0]["count"].tolist() for part in after["parts"]]
        assert counts == [[4, 4], [4, 4, 1]]
    if policy.startswith("spam"):
        assert after["parts"][0][0][0]["1"]["count"].tolist() == [4, 4, 4]
        assert after["parts"][1][0][0]["2"]["count"].tolist() == [1, 1]
    assert kept["steps"] == 3
    assert clipper.steps == 4


# ---- another policy ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (zclip(2.5), zclip(3.0), True),
        (zclip(2.5), "norm:1|zclip:3.0", True),
        (zclip(2.5), {"*": zclip(3.0)}, True),
        (quantile(0.5, window=5), quantile(0.9, window=5), True),
        (quantile(0.5, window=5), quantile(0.5, window=6), False),
        (zclip(2.5), "mean_std", False),
        (zclip(2.5), {"a": zclip(2.5), "*": None}, False),
        (adagc(warmup=1), {"b": adagc(warmup=1), "*": adagc(warmup=1)}, True),
        (spam(0.5), spam(0.7) | by_norm(1.0), True),
        (with_feedback(by_norm(1.0)), with_feedback(zclip()), True),
    ],
    ids=str,
)
def test_another_policy_keeps_what_means_the_same(before: Any, after: Any, kept: bool) -> None:
    named = _params((2, 3), (4,))
    clipper = Clipper(named, before)
    _steps(clipper, 3)
    leaves = _leaves(clipper.state_dict()["memory"])
    clipper.policy = after
    found = _leaves(clipper.state_dict()["memory"])
    if isinstance(before, Policy) and before.measure.scope == "tensor":
        assert sorted(v for leaf in found for v in leaf) == sorted(
            v for leaf in leaves for v in leaf
        )
    else:
        assert any(np.array_equal(leaf, leaves[0]) for leaf in found) == kept
    assert clipper.steps == 3
    _steps(clipper, 2)
    other = Clipper(named, after)
    other.load_state_dict(clipper.state_dict())


def _leaves(memory: Any) -> list[list[float]]:
    if isinstance(memory, dict):
        return [leaf for value in memory.values() for leaf in _leaves(value)]
    if isinstance(memory, list):
        return [leaf for value in memory for leaf in _leaves(value)]
    return [memory.ravel().tolist()]


def test_another_policy_is_used_at_the_next_step() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
    clipper = attach(optimizer, "norm:1.0")
    for policy, norm in ((None, 5.0), ("norm:0.5", 0.5), ({"*": by_value(2.0)}, 8**0.5)):
        clipper.policy = policy  # type: ignore[assignment]
        param.grad = torch.tensor([3.0, 4.0])
        optimizer.step()
        assert float(param.grad.norm()) == pytest.approx(norm)
        param.data.zero_()


def test_a_wrong_policy_leaves_the_clipper_as_it_was() -> None:
    clipper = Clipper(_params((2,), (3,)), zclip())
    _steps(clipper, 3)
    before = _flat(clipper)
    for wrong in ("nrom:1", {"x": "norm:1"}, 7):
        with pytest.raises(PolicyError):
            clipper.policy = wrong  # type: ignore[assignment]
        assert clipper.policy == zclip()
        assert _flat(clipper) == before


def test_what_would_be_ignored_cannot_be_set() -> None:
    clipper = Clipper(_params((2,)), "norm:1.0")
    for name in (
        "max_norm",
        "limit",
        "params",
        "names",
        "plan",
        "groups",
        "last",
        "steps",
        "verify",
    ):
        with pytest.raises(AttributeError, match="cannot be set: set one of policy, nonfinite"):
            setattr(clipper, name, 1)
    with pytest.raises(PolicyError, match="nonfinite"):
        clipper.nonfinite = "ignore"  # type: ignore[assignment]
    with pytest.raises(PolicyError, match="max_skips"):
        clipper.max_skips = -1
    clipper.nonfinite, clipper.max_skips = "zero", 3
    assert (clipper.nonfinite, clipper.max_skips) == ("zero", 3)
