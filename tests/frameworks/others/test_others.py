"""What the guide says of Ignite and schedulefree, beside its snippets."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import pytest
import schedulefree
import torch
from ignite.engine import create_supervised_trainer
from ignite.handlers import Checkpoint

from gradclip import PolicyError
from gradclip.torch import attach

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _trainer(policy: str) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clipper = attach(optimizer, policy, model=model)
    trainer = create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
    return trainer, clipper, {"model": model, "optimizer": optimizer, "clipper": clipper}


def _batches(first: int, last: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    every = [torch.randn(4, 9, generator=generator) for _ in range(last)]
    return [(batch[:, :8], batch[:, 8:]) for batch in every[first:]]


def test_ignites_checkpoint_holds_the_clipper() -> None:
    policy = "autoclip:50"
    whole, clipper, parts = _trainer(policy)
    whole.run(_batches(0, 12))
    half, _, half_parts = _trainer(policy)
    half.run(_batches(0, 8))
    saved: dict[str, Any] = {}
    saver = Checkpoint(half_parts, lambda state, *_: saved.update(state))
    saver(half)
    again, other, again_parts = _trainer(policy)
    Checkpoint.load_objects(again_parts, saved)
    again.run(_batches(8, 12))
    assert (other.steps, other.clipped) == (clipper.steps, clipper.clipped)
    assert 0 < clipper.clipped < 12
    assert torch.equal(again_parts["model"].weight, parts["model"].weight)


def _skipped(make: Any, owner: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = make(weight)
    clipper = attach(owner(optimizer), "norm:1.0")
    optimizer.train()
    for value in (1.0, 2.0, float("nan")):
        before = [weight.detach().clone(), *_state(optimizer)]
        weight.grad = torch.full((3,), value)
        optimizer.step()
    return before, [weight.detach().clone(), *_state(optimizer)], clipper


def _state(optimizer: Any) -> list[torch.Tensor]:
    found = [v for state in optimizer.state.values() for v in state.values()]
    return [v.clone() for v in found if isinstance(v, torch.Tensor)]


def test_a_skip_leaves_schedulefree_as_it_was() -> None:
    before, after, clipper = _skipped(
        lambda w: schedulefree.AdamWScheduleFree([w], lr=0.1), lambda optimizer: optimizer
    )
    assert clipper.skipped == 1
    assert all(map(torch.equal, before, after))


def test_a_skip_inside_of_the_wrapper_reaches_its_base_alone() -> None:
    before, after, clipper = _skipped(
        lambda w: schedulefree.ScheduleFreeWrapper(torch.optim.SGD([w], lr=0.1), momentum=0.9),
        lambda wrapper: wrapper.base,
    )
    assert clipper.skipped == 1
    assert all(bool(torch.isfinite(each).all()) for each in after)
    assert not torch.equal(before[0], after[0]), "the wrapper averages all the same"


def test_the_wrapper_itself_is_refused() -> None:
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(PolicyError, match="of a wrapper, the one inside"):
        attach(schedulefree.ScheduleFreeWrapper(base), "norm:1.0")
