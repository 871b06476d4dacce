"""Several optimizers of one model: one norm, one skip, one count, as if clipped before them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import NonFiniteError, PolicyError
from gradclip.torch import attach

STEPS = 5
POLICIES = [
    "norm:0.5",
    "norm:0.5,scope=tensor",
    "value:0.01",
    "agc",
    "zclip",
    "*.bias=norm:0.1;*=none",
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01),
        torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=0.01),
    ]


def one_each(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()]


def fused(model: nn.Module) -> list[torch.optim.Optimizer]:
    params = list(model.parameters())
    return [
        torch.optim.Adam(params[:3], lr=0.01, fused=True),
        torch.optim.SGD(params[3:], lr=0.1, fused=True),
    ]


SETS = [muon_and_adamw, one_each, fused]


def backward(model: nn.Module, step: int, factor: float = 100.0) -> Tensor:
    torch.manual_seed(step)
    loss = factor * model(torch.randn(8, 4)).square().mean()
    loss.backward()
    return loss


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    clip: Callable[[], bool] = lambda: True,
    bad: int = -1,
    order: int = 1,
) -> None:
    """Train; `clip` says whether the step is to be made."""
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step, float("nan") if step == bad else 100.0)
        if clip():
            for optimizer in optimizers[::order]:
                optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [-1, 2])
@pytest.mark.filterwarnings("ignore::gradclip.GradclipWarning")
def test_as_if_one_had_clipped_all_gradients_before_the_steps(
    make: Callable[[nn.Module], list[torch.optim.Optimizer]], policy: str, bad: int
) -> None:
    mine, theirs = net(), net()
    optimizers, others = make(mine), make(theirs)
    clipper = attach(optimizers, policy, model=mine)
    by_hand = gradclip_of(theirs, policy, clipper.names)
    train(mine, optimizers, bad=bad)
    train(theirs, others, lambda: not bool(by_hand.clip_().skipped), bad=bad)
    assert same(mine, theirs)
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (
        by_hand.steps,
        by_hand.clipped,
        by_hand.skipped,
    )
    assert clipper.skipped == (bad >= 0)
    for one, other in zip(optimizers, others, strict=True):
        assert str(one.state_dict()) == str(other.state_dict())


def gradclip_of(model: nn.Module, policy: str, names: tuple[str, ...]) -> Any:
    from gradclip.torch import Clipper

    known = dict(model.named_parameters())
    return Clipper([(name, known[name]) for name in names], policy)


def test_in_whichever_order_they_step() -> None:
    mine, theirs = net(), net()
    attach(muon_and_adamw(mine), "norm:0.5", model=mine)
    optimizers = muon_and_adamw(theirs)
    clipper = attach(optimizers, "norm:0.5", model=theirs)
    train(theirs, optimizers, order=-1)
    assert clipper.steps == STEPS
    total = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-6)


def test_one_that_steps_every_second_time() -> None:
    mine, theirs = net(), net()
    optimizers, others = muon_and_adamw(mine), muon_and_adamw(theirs)
    clipper = attach(optimizers, "norm:0.5", model=mine)
    for step in range(4):
        for model, pair in ((mine, optimizers), (theirs, others)):
            pair[0].zero_grad()
            backward(model, step)
            if model is theirs:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            pair[0].step()
            if step % 2:
                pair[1].step()
                pair[1].zero_grad()
    assert clipper.steps == 4
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_twice_the_same_gradients_are_two_steps() -> None:
    model = net()
    optimizers = one_each(model)
    clipper = attach(optimizers, "norm:0.5", model=model)
    backward(model, 0)
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    assert clipper.steps == 2


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("unscaled", [True, False])
def test_under_a_scaler(
    make: Callable[[nn.Module], list[torch.optim.Optimizer]], unscaled: bool
) -> None:
    mine, theirs = net(), net()
    optimizers, others = make(mine), make(theirs)
    attach(optimizers, "norm:0.5", model=mine)
    for model, several in ((mine, optimizers), (theirs, others)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(STEPS):
            for optimizer in several:
                optimizer.zero_grad()
            torch.manual_seed(step)
            loss = model(torch.randn(8, 4)).square().mean() * (float("inf") if step == 2 else 100)
            scaler.scale(loss).backward()
            if unscaled or model is theirs:
                for optimizer in several:
                    scaler.unscale_(optimizer)
            if model is theirs:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in several:
                scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_gradients_that_are_still_scaled_are_refused() -> None:
    model = net()
    optimizers = fused(model)
    clipper = attach(optimizers, "norm:0.5", model=model)
    backward(model, 0)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    vars(optimizers[0])["grad_scale"] = torch.tensor(1024.0)
    with pytest.raises(PolicyError, match="unscale_"):
        optimizers[0].step()
    assert all(map(torch.equal, before, [p.grad for p in model.parameters()]))  # type: ignore[arg-type]
    assert clipper.steps == 0


def test_a_closure_is_refused() -> None:
    model = net()
    optimizers = one_each(model)
    clipper = attach(optimizers, "norm:0.5", model=model)
    with pytest.raises(PolicyError, match="by itself"):
        optimizers[0].step(lambda: float(backward(model, 0).detach()))
    assert clipper.steps == 0


def test_too_many_skips_are_an_error_in_the_first_of_them() -> None:
    model = net()
    optimizers = one_each(model)
    attach(optimizers, "norm:0.5", model=model, max_skips=1)
    for _ in range(2):
        backward(model, 0, float("nan"))
        if _ == 0:
            for optimizer in optimizers:
                optimizer.step()
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        optimizers[0].step()


def test_parameters_that_come_later_are_clipped_too() -> None:
    model = net()
    params = list(model.parameters())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(params[:2], lr=0.1),
        torch.optim.SGD(params[2:4], lr=0.1),
    ]
    clipper = attach(optimizers, "norm:0.5", model=model)
    backward(model, 0)
    optimizers[1].add_param_group({"params": params[4:]})
    for optimizer in optimizers:
        optimizer.step()
    assert len(clipper.params) == 6
    total = torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()
    assert float(total) == pytest.approx(0.5, rel=1e-6)


def test_what_cannot_be_shared_is_refused_before_anything_is_attached() -> None:
    model = net()
    optimizers = one_each(model)
    for wrong, word in (
        ([], "at least one"),
        ([optimizers[0], optimizers[0]], "holds a parameter of another"),
        ([optimizers[0], model], "torch.optim.Optimizer"),
    ):
        with pytest.raises(PolicyError, match=word):
            attach(wrong, "norm:1")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="on="):
        attach(optimizers, "norm:1", on="update")
    with pytest.raises(PolicyError, match="loss"):
        attach(optimizers, "skip_outliers:of=loss")
    attach(optimizers[1], "norm:1").detach()
    clipper = attach(optimizers, "norm:1")
    with pytest.raises(PolicyError, match="has a clipper already"):
        attach(optimizers[2], "norm:1")
    clipper.detach()
    attach(optimizers[2], "norm:1").detach()


def test_names_without_a_model_are_each_of_one_parameter() -> None:
    model = net()
    clipper = attach(one_each(model), "norm:1")
    assert len({*clipper.names}) == 6
    assert clipper.names[1] == "optimizer1.group0.0"
    clipper.detach()


def test_detached_and_copied() -> None:
    model = net()
    optimizers = one_each(model)
    clipper = attach(optimizers, "norm:1", model=model)
    twins = copy.deepcopy(optimizers)
    clipper.detach()
    backward(model, 0)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for optimizer in (*optimizers, *twins):
        optimizer.step()
    assert all(map(torch.equal, before, [p.grad for p in model.parameters()]))  # type: ignore[arg-type]
    assert clipper.steps == 0
    assert not any("step" in vars(optimizer) for optimizer in optimizers)


def test_the_clipper_lives_as_long_as_an_optimizer() -> None:
    model = net()
    optimizers = muon_and_adamw(model)
    ref = weakref.ref(attach(optimizers, "norm:0.5", model=model))
    gc.collect()
    train(model, optimizers)
    found = ref()
    assert found is not None
    assert found.steps == STEPS
    del found
    optimizers.clear()
    gc.collect()
    assert ref() is None


class Synchronizes(torch.optim.SGD):
    """Changes the gradients inside of its step, as an all-reduce does, and then calls SGD's."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.synchronize()
        return super().step(closure)

    def synchronize(self) -> None:
        """Stand for an all-reduce."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(100.0)


def test_gradients_that_are_not_ready_before_the_step_are_refused() -> None:
    model = net()
    params = list(model.parameters())
    late, plain = Synchronizes(params[:3], lr=0.1), torch.optim.SGD(params[3:], lr=0.1)
    with pytest.raises(PolicyError, match="inside of its step"):
        attach([plain, late], "norm:0.5")
    hooked = torch.optim.SGD(params[:3], lr=0.1)
    handle = hooked.register_step_pre_hook(lambda *_: None)
    with pytest.raises(PolicyError, match="hook"):
        attach([plain, hooked], "norm:0.5")
    handle.remove()
    attach([plain, hooked], "norm:0.5").detach()


def test_old_gradients_are_not_kept_alive() -> None:
    model = net()
    optimizers = one_each(model)
    attach(optimizers, "norm:0.5", model=model)
    backward(model, 0)
    grads = [weakref.ref(p.grad) for p in model.parameters() if p.grad is not None]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    gc.collect()
    assert len(grads) == 6
    assert not any(ref() is not None for ref in grads)
