"""An interrupt at any line of a step leaves nothing half done, and the next step right."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gradclip.torch import Clipper, attach
from gradclip.torch.step.interrupts import Held
from integration.training import same


def build(policy: str, kind: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer, Clipper]:
    params = [nn.Parameter(torch.ones(n, dtype=d)) for n, d in SHAPES]
    if kind == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(params, lr=0.1, fused=True)
    return params, optimizer, attach(optimizer, policy)


SHAPES = ((3, torch.float32), (5, torch.float64), (2, torch.bfloat16))


def give(params: list[nn.Parameter], step: int, bad: float | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = (10 * torch.randn(p.shape, generator=generator)).to(p.dtype)
    if bad is not None:
        params[0].grad[0] = bad  # type: ignore[index]
    return [p.grad.clone() for p in params]  # type: ignore[union-attr]


class At:
    """Raises a KeyboardInterrupt at one line of gradclip, the n-th that runs."""

    def __init__(self, number: int, raise_it: Callable[[], None]) -> None:
        self.left, self.raise_it = number, raise_it

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if "/gradclip/" not in frame.f_code.co_filename:
            return self if event == "call" else None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.raise_it()
        return self


def interrupt() -> None:
    raise KeyboardInterrupt


def by_signal() -> None:
    signal.raise_signal(signal.SIGINT)


def lines_of(policy: str, kind: str, bad: float | None) -> int:
    params, optimizer, _ = build(policy, kind)
    give(params, 0)
    optimizer.step()
    give(params, 1, bad)
    count = At(10**9, interrupt)
    usual = sys.gettrace()  # Of coverage: without it the later tests would not be measured.
    sys.settrace(count)
    try:
        optimizer.step()
    finally:
        sys.settrace(usual)
    return 10**9 - count.left


@pytest.mark.slow
@pytest.mark.parametrize("raise_it", [by_signal, interrupt])
@pytest.mark.parametrize("bad", [None, float("nan")], ids=["good", "bad"])
@pytest.mark.parametrize("kind", ["SGD", "Adam-fused"])
@pytest.mark.parametrize("policy", ["norm:1.0", "value:1.0"])
def test_an_interrupt_at_any_line(
    policy: str, kind: str, bad: float | None, raise_it: Callable[[], None]
) -> None:
    total = lines_of(policy, kind, bad)
    seen, usual = 0, sys.gettrace()
    for number in range(1, total + 1):
        params, optimizer, clipper = build(policy, kind)
        give(params, 0)
        optimizer.step()
        before = give(params, 1, bad)
        clipped = wanted(policy, kind, bad)
        sys.settrace(At(number, raise_it))
        try:
            optimizer.step()
        except KeyboardInterrupt:
            seen += 1
        finally:
            sys.settrace(usual)
        now = [p.grad for p in params]
        assert same(now, before) or same(now, clipped), number
        assert clipper.state_dict()["steps"] in (1, 2)
        steps = clipper.steps
        give(params, 2)
        optimizer.step()
        assert clipper.steps == steps + 1, number
        assert clipper.skipped == (clipper.steps == 3 and bad is not None), number
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
        clipper.detach()
    assert seen > total // 2
    with pytest.raises(KeyboardInterrupt):  # And Ctrl-C still works.
        by_signal()
    signal.signal(signal.SIGINT, signal.default_int_handler)


ASIDE = ["value:1.0", "norm:1.0|value:0.1", "feedback(norm:1.0)", "feedback(value:1.0)"]
ASIDE += ["clip21(norm:1.0)", "spectral:0.5", "acclip"]


def plain(state: Any) -> Any:
    """Return what is saved, with lists in place of tensors."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    return state.tolist() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("policy", ASIDE)
def test_policies_that_change_values_do_all_or_nothing(policy: str) -> None:
    """Cut off at lines all over the step: gradients and memory are of before, or of after."""

    def start() -> tuple[list[nn.Parameter], torch.optim.Optimizer, Clipper, list[Tensor]]:
        params = [nn.Parameter(torch.ones(n, 3, dtype=d)) for n, d in SHAPES]
        optimizer = torch.optim.SGD(params, lr=0.1)
        clipper = attach(optimizer, policy)
        give(params, 0)
        optimizer.step()
        return params, optimizer, clipper, give(params, 1)

    params, optimizer, clipper, before = start()
    known = [plain(clipper.state_dict())]
    count = At(10**9, interrupt)
    usual = sys.gettrace()  # Of coverage: without it the later tests would not be measured.
    sys.settrace(count)
    try:
        optimizer.step()
    finally:
        sys.settrace(usual)
    known.append(plain(clipper.state_dict()))
    clipped = [p.grad for p in params]
    assert not same(before, clipped)
    for number in range(1, 10**9 - count.left, 11):
        params, optimizer, clipper, _ = start()
        sys.settrace(At(number, interrupt))
        try:
            optimizer.step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(usual)
        now = [p.grad for p in params]
        assert same(now, before) or same(now, clipped), number
        assert plain(clipper.state_dict()) in known, number


def wanted(policy: str, kind: str, bad: float | None) -> list[Tensor | None]:
    params, optimizer, clipper = build(policy, kind)
    give(params, 0)
    optimizer.step()
    give(params, 1, bad)
    optimizer.step()
    clipper.detach()
    return [p.grad for p in params]


def test_what_is_held_comes_after() -> None:
    done = []

    def hold() -> None:
        with Held():
            by_signal()
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Interrupted(torch.optim.SGD):
    now = False

    def step(self, closure: Any = None) -> Any:
        if self.now:
            raise KeyboardInterrupt
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_interrupted_step_does_not_reach_the_next(with_closure: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1))
    weight = cast(nn.Linear, model[0]).weight
    optimizer = Interrupted(model.parameters(), lr=0.1)
    clipper = attach(optimizer, "norm:1.0", model=model)
    x = torch.ones(1, 2)
    (model[0](x) + model[1](x) * float("nan")).sum().backward()
    optimizer.now = True
    try:
        optimizer.step((lambda: 0.0) if with_closure else None)
    except KeyboardInterrupt:
        assert with_closure
    optimizer.now = False
    optimizer.zero_grad()
    model[0](x).sum().backward()
    before = weight.detach().clone()
    optimizer.step()
    assert clipper.skipped == (0 if with_closure else 1)
    assert model[1].weight.grad is None
    assert not torch.equal(before, weight)
