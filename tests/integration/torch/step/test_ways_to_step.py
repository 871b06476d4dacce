"""A skip is a step that did not happen, whichever way the step is called."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from gradclip import PolicyError
from gradclip.torch import Clipper, attach, attach_in_backward
from gradclip.torch.in_backward import InBackward
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session
from integration.torch.step.test_left_out import Counts, Searches, everything, grads, parameters
from integration.training import owned, same

NAN, INF = float("nan"), float("inf")
PATTERN = (NAN, None, None, INF, NAN, None, -INF, None)
Step = Callable[..., Any]


class Noise(torch.optim.SGD):
    """Changes the gradients inside of its step, and counts."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
        for p in owned(self):
            p.grad.mul_(0.5)  # type: ignore[union-attr]
        return super().step(closure)


KINDS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam-fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "Counts": Counts,
    "Noise": lambda p: Noise(p, lr=0.1, momentum=0.9),
}


def by_instance(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    attach(optimizer, "norm:1e9", max_skips=100)
    return lambda *args: optimizer.step(*args)


def bound_before(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    step = optimizer.step
    attach(optimizer, "norm:1e9", max_skips=100)
    return step


def by_class(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    attach(optimizer, "norm:1e9", max_skips=100)
    return lambda *args: type(optimizer).step(optimizer, *args)


def put_back_by_a_wrapper(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    """As Accelerate: the step from before is the instance's own again, after the first call."""
    original = optimizer.step
    attach(optimizer, "norm:1e9", max_skips=100)

    def step(*args: Any) -> Any:
        value = optimizer.step(*args)
        optimizer.step = original  # type: ignore[method-assign]
        return value

    return step


def under_run(optimizer: torch.optim.Optimizer, undo: ExitStack) -> Step:
    undo.enter_context(watch(Session("norm:1e9", max_skips=100)))
    return lambda *args: optimizer.step(*args)


def in_backward(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    attach_in_backward([optimizer], "norm:1e9,scope=tensor", max_skips=100)
    return lambda *args: optimizer.step(*args)


def in_backward_bound_before(optimizer: torch.optim.Optimizer, _undo: ExitStack) -> Step:
    step = optimizer.step
    attach_in_backward([optimizer], "norm:1e9", max_skips=100)
    return step


WAYS = [by_instance, bound_before, by_class, put_back_by_a_wrapper, under_run]
WAYS += [in_backward, in_backward_bound_before]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_skip_is_left_out_in_every_way(
    way: Callable[[torch.optim.Optimizer, ExitStack], Step], kind: str
) -> None:
    ends = []
    for attached in (True, False):
        params = parameters()
        optimizer = KINDS[kind](params)
        with ExitStack() as undo:
            step = way(optimizer, undo) if attached else optimizer.step
            for number, bad in enumerate(PATTERN):
                before = grads(params, number, bad) and [p.grad for p in params]
                if attached or bad is None:
                    step()
                if bad is not None and kind != "Noise":  # Its gradient is there, as it was.
                    assert all(a is b.grad for a, b in zip(before, params, strict=True))
        ends.append(everything(optimizer))
    assert same(ends[0], ends[1])


@pytest.mark.parametrize("way", [bound_before, by_class])
@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Searches, Counts])
def test_closures_are_left_out_in_every_way(way: Any, kind: Any) -> None:
    ends = []
    for attached in (True, False):
        params = parameters()
        optimizer = kind(params)
        step = way(optimizer, ExitStack()) if attached else optimizer.step
        for number, bad in enumerate(PATTERN):
            value = torch.tensor(1.0 + number)
            if attached or bad is None:
                closure = partial(grads, params, number, bad)
                assert float(step(closure)) == value
        ends.append(everything(optimizer))
    assert same(ends[0], ends[1])


@pytest.mark.parametrize("way", [bound_before, by_class])
def test_a_step_is_clipped_and_counted_once(way: Any) -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0)
    step = way(optimizer, ExitStack())
    clipper = next(iter(optimizer._optimizer_step_pre_hooks.values()))  # type: ignore[attr-defined]
    clipper = inspect.unwrap(clipper).__self__._clipper  # type: ignore[attr-defined]
    clipper.policy = "norm:1.0"
    before = [p.detach().clone() for p in params]
    grads(params, 0)
    step()
    moved = [(p - b).detach().square().sum() for p, b in zip(params, before, strict=True)]
    assert float(torch.stack(moved).sum()) == pytest.approx(1.0, rel=1e-5)
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (1, 1, 0)
    clipper.detach()
    grads(params, 1, NAN)
    step()
    assert clipper.steps == 1
    assert bool(params[0].isnan().any())


@pytest.mark.parametrize("bind_first", [True, False])
def test_schedulers_and_a_bound_step(bind_first: bool) -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0)
    scheduler = None if bind_first else torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = optimizer.step
    clipper = attach(optimizer, "norm:1e9")
    scheduler = scheduler or torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, bad in enumerate((NAN, None)):
            before = everything(optimizer)["weights"]
            grads(params, number, bad)
            step()
            assert same(everything(optimizer)["weights"], before) == (bad is not None)
            if not bind_first:  # Else torch warns of a step that it did not see, clipped or not.
                scheduler.step()
    assert (clipper.steps, clipper.skipped) == (2, 1)


def test_a_scaler_with_a_bound_step() -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=1.0, momentum=0.9)
    optimizer.step = optimizer.step  # type: ignore[method-assign]
    bound = optimizer.step
    clipper = attach(optimizer, "skip-above:100")
    optimizer.step = bound  # type: ignore[method-assign]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, (bad, moves) in enumerate(((1e3, False), (NAN, False), (None, True))):
        before = everything(optimizer)
        scaler.scale(grads(params, number, bad))  # Makes the scale.
        for p in params:
            p.grad.mul_(scaler.get_scale())  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        assert same(everything(optimizer), before) != moves
    assert clipper.skipped == 1


def test_other_optimizers_of_the_class_go_on_as_they_were() -> None:
    attach(torch.optim.SGD(parameters(), lr=1.0), "norm:1.0")
    params = parameters()
    other = torch.optim.SGD(params, lr=1.0)
    grads(params, 0, NAN)
    other.step()
    assert bool(params[0].isnan().any())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of torch, as its compiler is imported.
@pytest.mark.parametrize("way", [bound_before, by_class])
def test_a_compiled_step(way: Any) -> None:
    ends = []
    for attached in (True, False):
        params = parameters()
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        step = way(optimizer, ExitStack()) if attached else optimizer.step
        compiled = torch.compile(step, backend="eager")
        for number, bad in enumerate(PATTERN):
            grads(params, number, bad)
            if attached or bad is None:
                compiled()
        ends.append(everything(optimizer))
    assert same(ends[0], ends[1])


def runs_hooks() -> type[torch.optim.SGD]:
    """Return a class whose hooks somebody else's function runs, marked as torch marks its own."""

    class RunsHooks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            for hook in self._optimizer_step_pre_hooks.values():  # type: ignore[attr-defined]
                hook(self, (self,), {})
            for p in owned(self):
                p.data.sub_(p.grad)  # type: ignore[arg-type]
            return closure

        step.hooked = True  # type: ignore[attr-defined]

    return RunsHooks


@pytest.mark.parametrize("on", [attach, lambda o, p: attach_in_backward([o], p)])
def test_what_cannot_be_left_out_is_refused_before_anything_moves(on: Any) -> None:
    params = parameters()
    optimizer = runs_hooks()(params, lr=1.0)
    bound = optimizer.step
    clipper: Clipper | InBackward = on(optimizer, "norm:1e9")
    for number, bad in enumerate((None, NAN)):
        before = everything(optimizer)
        grads(params, number, bad)
        optimizer.step()
        assert same(everything(optimizer), before) == (bad is not None)
    before = everything(optimizer)
    grads(params, 2)
    with pytest.raises(PolicyError, match="'RunsHooks' is not usable: this call of its step"):
        bound()
    assert same(everything(optimizer), before)
    assert (clipper.steps, clipper.skipped) == (2, 1)
