"""The names of an optimizer's parameters, found without being told the model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip.torch.attaching import named_parameters
from gradclip.torch.script.find_model import _children, _unwrapped, find_model


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(3, 3)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(3, 1)


def names(*params: Tensor) -> list[str]:
    optimizer = torch.optim.SGD(params, lr=0.1)
    model = find_model([p for group in optimizer.param_groups for p in group["params"]])
    return [name for name, _ in named_parameters(optimizer, model)]


def test_among_several_models_its_own() -> None:
    first, second = Whole(), Whole()
    assert names(*second.parameters()) == [n for n, _ in second.named_parameters()]
    found = find_model([*first.parameters()])
    assert found is first


def test_a_part_has_the_names_that_the_whole_gives() -> None:
    model = Whole()
    model.backbone.requires_grad_(False)
    assert names(*model.head.parameters()) == ["head.weight", "head.bias"]
    assert names(model.head.weight) == ["head.weight"]


def wrapped(model: nn.Module, kind: str) -> Any:
    if kind == "compiled":
        return torch.compile(model, backend="eager")
    if kind == "DataParallel":
        return nn.DataParallel(model)
    return nn.DataParallel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["compiled", "DataParallel", "both"])
def test_wrappers_add_nothing(kind: str) -> None:
    model = Whole()
    outside = wrapped(model, kind)
    assert names(*outside.parameters()) == [n for n, _ in model.named_parameters()]


def test_a_compiled_model_is_a_child_though_it_has_no_truth_value() -> None:
    """Else it and its wrapper are two models, and chance decides between them."""
    model = Whole()
    outside = wrapped(model, "both")
    assert [child for _, child in _children(outside)] == [outside.module]
    assert _unwrapped(outside) is model


def test_two_models_in_one_optimizer() -> None:
    one, two, part = Whole(), Backbone(), Whole()
    given = [*one.parameters(), *two.parameters(), *part.head.parameters()]
    assert sorted(names(*given)) == sorted(
        [
            *(f"one.{n}" for n, _ in one.named_parameters()),
            *(f"two.{n}" for n, _ in two.named_parameters()),
            "part.head.weight",
            "part.head.bias",
        ]
    )


@pytest.mark.parametrize("big_first", [True, False])
def test_of_two_models_that_share_a_part_the_smaller(big_first: bool) -> None:
    part = Backbone()
    makers = [lambda: nn.ModuleDict({"big": part, "more": nn.Linear(3, 3)})]
    makers.insert(big_first, lambda: nn.ModuleDict({"small": part}))
    models = [make() for make in makers]
    assert len(models) == 2
    assert names(*part.parameters()) == ["small.conv.weight", "small.conv.bias"]


def test_tied_parameters_have_their_first_name() -> None:
    model = Whole()
    model.head.weight = nn.Parameter(torch.ones(3, 3))
    model.backbone.conv.weight = model.head.weight
    assert names(model.head.weight) == ["backbone.conv.weight"]


def test_parameters_of_no_model() -> None:
    assert find_model([nn.Parameter(torch.ones(2))]) is None
    assert names(nn.Parameter(torch.ones(2))) == ["group0.0"]


class Lying:
    """A proxy that says it is a module, and fails at everything."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return nn.Module

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Failing:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no class")


class HalfMade(nn.Module):
    def __init__(self) -> None:  # No super().__init__().
        pass


class Broken(nn.Module):
    def named_parameters(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no parameters")


def test_odd_objects_do_no_harm() -> None:
    model, lazy = Whole(), nn.LazyLinear(3)
    broken = Broken()
    broken.inner = model  # Of it nothing is known, so of the model neither: numbers then.
    odd = [Lying(), Failing(), HalfMade(), broken, lazy]
    other = Whole()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(*other.parameters()) == [n for n, _ in other.named_parameters()]
        assert find_model([*lazy.parameters()]) is lazy
        assert names(model.head.weight) == ["group0.0"]
    assert len(odd) == 5
