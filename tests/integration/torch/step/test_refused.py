"""What cannot be clipped in an optimizer's steps is refused when it is said, not a step later."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import PolicyError, by_norm, skip_outliers
from gradclip.torch import attach, attach_in_backward
from integration.training import owned

OF_LOSS = skip_outliers(3.0, 6, 4, of="loss")
Attach = Any


def weight() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


def one(optimizer: Any, policy: Any, **options: Any) -> Any:
    return attach_in_backward([optimizer], policy, **options)


class PassesOn:
    """Has every attribute of an optimizer, but is none."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


class Poses(PassesOn):
    """As a proxy of wrapt: says that its class is the optimizer's."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return type(self.optimizer)


class NoHooks(torch.optim.Optimizer):
    """Inherits from Optimizer, and calls nothing of it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


@pytest.mark.parametrize("on", [attach, one])
@pytest.mark.parametrize("wrapper", [PassesOn, Poses, NoHooks, id, repr])
def test_what_only_looks_like_an_optimizer_is_refused(wrapper: Any, on: Attach) -> None:
    optimizer = torch.optim.SGD([weight()], lr=1.0)
    with pytest.raises(PolicyError, match="of a wrapper, the one inside"):
        on(wrapper(optimizer), "norm:1.0")
    on(optimizer, "norm:1.0").detach()


@pytest.mark.parametrize("on", [attach, one])
def test_a_wrapper_is_refused_with_the_place_of_the_optimizer_inside(on: Attach) -> None:
    optimizer = torch.optim.SGD([weight()], lr=1.0)
    for wrapper, place in (
        (NoHooks(optimizer), r"\.optimizer"),
        (NoHooks(NoHooks(optimizer)), r"\.optimizer\.optimizer"),
    ):
        with pytest.raises(PolicyError, match=f"which is {place}, of class SGD$"):
            on(wrapper, "norm:1.0")
    on(optimizer, "norm:1.0").detach()


@pytest.mark.parametrize("on", [attach, one])
def test_no_optimizer_yet_is_refused_with_who_makes_one(on: Attach) -> None:
    with pytest.raises(PolicyError, match=r"optimizer=None is not usable: .*install\(trainer, pol"):
        on(None, "norm:1.0")  # type: ignore[arg-type]


class Composite(torch.optim.Optimizer):
    """Several optimizers as one, with hooks that nobody runs but the class's."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([p for part in parts for p in owned(part)], {})
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = defaultdict(dict)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return [part.step(closure) for part in self.parts][-1]


def test_a_composite_is_clipped_as_a_whole_and_left_out_as_a_whole() -> None:
    params = [weight(), weight()]
    inner = [torch.optim.SGD([params[0]], lr=1.0), torch.optim.Adam([params[1]], lr=1.0)]
    optimizer = Composite(*inner)
    clipper = attach(optimizer, "norm:1.0")
    params[0].grad, params[1].grad = torch.tensor([0.0, 3.0]), torch.tensor([0.0, 4.0])
    optimizer.step()
    assert params[0].tolist() == pytest.approx([0.0, -0.6])
    params[1].grad = torch.tensor([float("inf"), 0.0])
    state = {k: float(v["step"]) for k, v in inner[1].state.items()}
    optimizer.step()
    assert {k: float(v["step"]) for k, v in inner[1].state.items()} == state
    assert (clipper.steps, clipper.skipped) == (2, 1)


@pytest.mark.parametrize("on", [attach, one])
def test_differentiable_models_and_frozen_ones(on: Attach) -> None:
    with pytest.raises(PolicyError, match="differentiable=True"):
        on(torch.optim.SGD([weight()], lr=1.0, differentiable=True), "norm:1.0")
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(PolicyError, match="no parameter that requires a gradient"):
        on(torch.optim.SGD(frozen.parameters(), lr=1.0), "norm:1.0", model=frozen)
    with pytest.raises(PolicyError, match="holds none of the optimizer's parameters"):
        on(torch.optim.SGD([weight()], lr=1.0), "norm:1.0", model=nn.Linear(2, 2))
    with pytest.raises(PolicyError, match=r"give the torch\.nn\.Module"):
        on(torch.optim.SGD([weight()], lr=1.0), "norm:1.0", model=[weight()])


@pytest.mark.parametrize("on", [attach, one])
@pytest.mark.parametrize("policy", [OF_LOSS, OF_LOSS | by_norm(1.0), {"*": OF_LOSS}])
def test_a_policy_that_looks_at_the_loss_is_refused_where_there_is_none(
    policy: Any, on: Attach
) -> None:
    with pytest.raises(PolicyError, match=r"it looks at the loss, and SGD\.step\(\)"):
        on(torch.optim.SGD([weight()], lr=1.0), policy)
    with pytest.raises(PolicyError, match="says nothing about an update"):
        attach(torch.optim.LBFGS([weight()]), policy, on="update")


@pytest.mark.parametrize("on", ["gradient", "update"])
@pytest.mark.parametrize("policy", [OF_LOSS, OF_LOSS | by_norm(1.0), {"*": OF_LOSS}])
def test_a_policy_set_later_is_refused_as_it_is_set(policy: Any, on: Any) -> None:
    p = weight()
    optimizer = torch.optim.SGD([p], lr=1.0)
    clipper = attach(optimizer, "norm:1.0", on=on)
    with pytest.raises(PolicyError, match="it looks at the loss"):
        clipper.policy = policy
    assert clipper.policy == by_norm(1.0)
    p.grad = torch.tensor([0.0, 10.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([0.0, -1.0])
    clipper.detach()
    clipper.policy = policy  # By hand the loss can be given.
    assert clipper.clip_(loss=1.0).skipped.item() is False


def test_a_policy_for_steps_that_are_only_measured_is_refused_as_it_is_set() -> None:
    optimizer = torch.optim.SGD([weight()], lr=1.0, differentiable=True)
    clipper = attach(optimizer, None)
    with pytest.raises(PolicyError, match="differentiable=True"):
        clipper.policy = "norm:1.0"
    assert str(clipper.policy) == "none"


@pytest.mark.parametrize("first", [attach, one])
@pytest.mark.parametrize("second", [attach, one])
def test_one_clipper_at_a_time(first: Attach, second: Attach) -> None:
    optimizer = torch.optim.SGD([weight()], lr=1.0)
    clipper = first(optimizer, "norm:1.0")
    with pytest.raises(PolicyError, match="it has a clipper already"):
        second(optimizer, "norm:1.0")
    clipper.detach()
    assert second(optimizer, "norm:1.0").steps == 0


# ---- classes that change gradients inside of `step` ----------------------------------------


class Synchronizes:
    """A mixin, as the optimizers of distributed packages have them."""

    def flush(self) -> None:
        for p in owned(self):  # type: ignore[arg-type]
            p.grad.add_(torch.tensor([0.0, -9.0])).div_(2)  # type: ignore[union-attr]


class FromAMixin(Synchronizes, torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.flush()
        return super().step(closure)


def average(params: list[Tensor]) -> None:
    for p in params:
        p.grad.data.add_(torch.tensor([0.0, -9.0])).div_(2)  # type: ignore[union-attr]


class ByAFunction(torch.optim.SGD):
    """Changes the gradients where no counter of versions sees that."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        average(owned(self))
        return super().step(closure)


class Middle(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        average(owned(self))
        return super().step(closure)


class OverTheMiddle(Middle):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


class Unscales(torch.optim.SGD):
    factor = 2.0

    def unscale_(self) -> None:
        self.factor = 2.0
        average(owned(self))

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.unscale_()
        return super(Unscales, self).step(closure)  # noqa: UP008 - as Horovod writes it


class MadeFrom(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        average(owned(self))
        return super(self.__class__, self).step(closure)


KINDS: list[Any] = [FromAMixin, ByAFunction, OverTheMiddle, Unscales]
# As Horovod makes the class of a user's optimizer.
KINDS.append(type("SGD", (torch.optim.SGD,), dict(vars(MadeFrom))))


@pytest.mark.parametrize("on", [attach, one])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_clipped_where_they_are_ready(kind: Any, on: Attach) -> None:
    p = weight()
    optimizer = kind([p], lr=1.0)
    clipper = on(optimizer, "norm:1.0")
    for grad, after in ((10.0, -0.5), (49.0, -1.5), (float("nan"), -1.5)):
        p.grad = torch.tensor([0.0, grad])
        optimizer.step()
        assert p.tolist() == [0.0, after]
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (3, 1, 1)
