"""`attach` clips every optimizer right, or refuses with the reason."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import PolicyError, skip_outliers
from gradclip.torch import attach
from integration.training import owned


def weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


class Reduces(torch.optim.SGD):
    """Averages with a worker that has -9."""

    def step(self, closure: Any = None) -> Any:
        for p in owned(self):
            p.grad.add_(torch.tensor([0.0, -9.0])).div_(2)  # type: ignore[union-attr]
        return super().step(closure)


class ReducesElsewhere(torch.optim.SGD):
    def synchronize(self) -> None:
        for p in owned(self):
            p.grad.add_(torch.tensor([0.0, -9.0])).div_(2)  # type: ignore[union-attr]

    def step(self, closure: Any = None) -> Any:
        self.synchronize()
        return super().step(closure)


class ByName(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for p in owned(self):
            p.grad = (p.grad + torch.tensor([0.0, -9.0])) / 2  # type: ignore[operator]
        return torch.optim.SGD.step(self, closure)


class Grandchild(Reduces):
    """Adds nothing but a level."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("inner_first", [True, False])
@pytest.mark.parametrize("kind", [Reduces, ReducesElsewhere, ByName, Grandchild])
def test_gradients_that_step_changes_are_clipped_after_that(
    kind: Any, *, inner_first: bool
) -> None:
    if inner_first:
        torch.optim.SGD([weight()])  # From now on the parent's step runs hooks.
    p = weight()
    optimizer = kind([p], lr=1.0)
    clipper = attach(optimizer, "norm:1.0")
    p.grad = torch.tensor([0.0, 10.0])
    optimizer.step()
    assert p.tolist() == [0.0, -0.5]
    p.grad = torch.tensor([0.0, 49.0])
    optimizer.step()
    assert p.tolist() == [0.0, -1.5]
    p.grad = torch.tensor([0.0, float("nan")])
    optimizer.step()
    assert p.tolist() == [0.0, -1.5]
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (3, 1, 1)


def change(params: list[Tensor]) -> None:
    for p in params:
        p.grad.mul_(2)  # type: ignore[union-attr]


class Hides(torch.optim.SGD):
    """Changes the gradients in a way that its code does not name."""

    todo = (change,)

    def step(self, closure: Any = None) -> Any:
        for each in self.todo:
            each(owned(self))
        return super().step(closure)


class NeverCalls(torch.optim.SGD):
    """Names its parent's step, and gradients, but does not call it."""

    def step(self, closure: Any = None) -> Any:
        if any(p.grad is None for p in owned(self)):
            return super().step(closure)
        return None


@pytest.mark.parametrize("kind", [Hides, NeverCalls])
def test_what_cannot_be_clipped_right_is_said(kind: Any) -> None:
    p = weight()
    optimizer = kind([p], lr=1.0)
    attach(optimizer, "norm:1.0")
    p.grad = torch.tensor([0.0, 10.0])
    with pytest.raises(PolicyError, match=rf"'{kind.__name__}' is not usable: its step\(\)"):
        optimizer.step()
    assert p.tolist() == [0.0, 0.0]


class Shell(torch.optim.Optimizer):
    """As timm's Lookahead: dictionaries for hooks, and a step that runs none."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.base, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state = defaultdict(dict)

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_a_step_that_runs_no_hooks_is_reached() -> None:
    p = weight()
    optimizer = Shell(torch.optim.SGD([p], lr=1.0))
    clipper = attach(optimizer, "norm:1.0")
    p.grad = torch.tensor([0.0, 10.0])
    optimizer.step()
    assert p.tolist() == [0.0, -1.0]
    p.grad = torch.tensor([0.0, float("inf")])
    optimizer.step(lambda: 0.0)
    assert p.tolist() == [0.0, -1.0]
    assert (clipper.steps, clipper.skipped) == (2, 1)


def test_differentiable_steps_are_refused() -> None:
    optimizer = torch.optim.SGD([weight()], differentiable=True)
    with pytest.raises(PolicyError, match="differentiable=True"):
        attach(optimizer, "norm:1.0")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(PolicyError, match="no parameter that requires a gradient"):
        attach(torch.optim.SGD(frozen.parameters()), "norm:1.0", model=frozen)


def test_the_model_of_another_optimizer_is_refused() -> None:
    with pytest.raises(PolicyError, match="holds none of the optimizer's parameters"):
        attach(torch.optim.SGD([weight()]), "norm:1.0", model=nn.Linear(2, 2))


def test_a_policy_that_looks_at_the_loss_needs_a_closure() -> None:
    policy = skip_outliers(3.0, 6, 4, of="loss")
    with pytest.raises(PolicyError, match=r"it looks at the loss, and SGD\.step\(\)"):
        attach(torch.optim.SGD([weight()]), policy)


def test_the_loss_of_a_closure_is_used() -> None:
    p = weight()
    optimizer = torch.optim.LBFGS([p], max_iter=1, lr=0.1)
    clipper = attach(optimizer, skip_outliers(3.0, 6, 4, of="loss"))

    def closure(loss: float) -> Tensor:
        p.grad = torch.ones(2)
        return torch.tensor(loss)

    for loss in (1.0, 1.2, 0.9, 1.1, 80.0):
        optimizer.step(lambda loss=loss: closure(loss))  # type: ignore[arg-type]
    assert clipper.skipped == 1
