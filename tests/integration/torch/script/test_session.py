"""What `gradclip run` sees of a training: its optimizers, and which of them share one norm."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradclip.torch
from gradclip import PolicyError, diagnose
from grads import grad_of
from integration.training import loss_at, net, weights

from .sessions import Watched, one_step, sgd

# ---- Several optimizers


def _total(model: nn.Module) -> float:
    return float(torch.cat([grad_of(p).flatten() for p in model.parameters()]).norm())


@pytest.mark.parametrize("count", [2, 4])
def test_optimizers_that_step_together_share_one_norm(watched: Watched, count: int) -> None:
    model = net()
    params = list(model.parameters())
    optimizers = [torch.optim.SGD(params[i::count], lr=0.01) for i in range(count)]
    before, after = [], []

    def train() -> None:
        for step in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_at(model, step).backward()
            before.append(_total(model))
            for optimizer in optimizers:
                optimizer.step()
            after.append(_total(model))

    session, run = watched(train, "norm:0.0001")
    assert session.optimizers == {"SGD": count}
    assert session.steps == session.clipped == 3
    assert session.notices == {}
    np.testing.assert_allclose(run.column("norm"), before, rtol=1e-6)
    np.testing.assert_allclose(after, 0.0001, rtol=1e-6)
    assert [p.name for p in run.optimizers[0].parameters] == [
        name for i in range(count) for name, _ in list(model.named_parameters())[i::count]
    ]


def test_in_turn_each_has_its_own_norm_and_its_own_rules(watched: Watched) -> None:
    generator, critic = net(0), net(1)
    first, second = sgd(generator), torch.optim.Adam(critic.parameters())
    norms: list[tuple[float, float]] = []

    def train() -> None:
        for step in range(3):
            one_step(generator, first, step)
            one_step(critic, second, step)
            norms.append((_total(generator), _total(critic)))

    session, run = watched(train, "generator.*=norm:0.0001;*=none")
    assert session.steps == 6
    assert session.clipped == 3
    assert [round(norm, 6) for norm, _ in norms] == [0.0001] * 3
    assert min(norm for _, norm in norms) > 0.0002
    assert run.optimizers[0].parameters[0].name.startswith("generator.")
    assert run.optimizers[1].parameters[0].name.startswith("critic.")


def test_a_pattern_that_nothing_has_is_refused(watched: Watched) -> None:
    generator, critic = net(0), net(1)
    first, _second = sgd(generator), torch.optim.Adam(critic.parameters())
    with pytest.raises(PolicyError, match="decoder"):
        watched(lambda: one_step(generator, first), "decoder.*=norm:0.0001;*=none")


def test_a_loss_that_reaches_both_in_turn_parts_them_and_says_so(watched: Watched) -> None:
    generator, critic = net(0), net(1)
    first, second = sgd(generator), sgd(critic)
    norms = []

    def train() -> None:
        for step in range(4):
            for optimizer, model in ((first, generator), (second, critic)):
                optimizer.zero_grad()
                (loss_at(generator, step) + loss_at(critic, step)).backward()
                optimizer.step()
                norms.append(_total(model))

    session, _ = watched(train, "norm:0.0001")
    assert "in turn" in session.notices["apart"]
    assert session.clipped == session.steps == 8
    # The first step came before anybody could know.
    np.testing.assert_allclose(norms[1:], 0.0001, rtol=1e-6)


def test_inside_of_backward_each_has_its_own_norm_and_it_says_so(watched: Watched) -> None:
    model = net()
    optimizers: dict[Tensor, torch.optim.Optimizer] = {
        p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()
    }
    used = []

    def step(param: Tensor) -> None:
        optimizers[param].step()
        used.append(float(grad_of(param).norm()))

    hooks = [param.register_post_accumulate_grad_hook(step) for param in optimizers]
    session, _ = watched(lambda: loss_at(model, 0).backward(), "norm:0.0001")
    for hook in hooks:  # In a cycle that Python's collector does not see.
        hook.remove()
    np.testing.assert_allclose(used, 0.0001, rtol=1e-6)
    assert "attach_in_backward" in session.notices["apart"]
    assert session.optimizers == {"SGD": len(optimizers)}


def test_a_wrapper_and_the_optimizer_inside_count_once(watched: Watched) -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return self.inner.step(closure)

    model = net()
    optimizer = Wrapper(sgd(model))
    session, run = watched(lambda: [one_step(model, optimizer, k) for k in range(3)], "norm:0.0001")
    assert session.optimizers == {"Wrapper": 1}
    assert session.steps == session.clipped == 3
    assert len(run.optimizers) == 1


def test_gradients_that_a_hook_may_change_part_them(watched: Watched) -> None:
    model = net()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2)]
    optimizers[1].register_step_pre_hook(lambda *_: None)

    def train() -> None:
        for step in range(2):
            model.zero_grad()
            loss_at(model, step).backward()
            for optimizer in optimizers:
                optimizer.step()

    session, _ = watched(train, "norm:0.0001")
    assert "hook" in session.notices["apart"]
    assert session.clipped == session.steps == 4


def test_a_closure_parts_them(watched: Watched) -> None:
    model = net()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))

    def closure() -> Tensor:
        loss = loss_at(model, 0)
        loss.backward()
        return loss

    def train() -> None:
        loss_at(model, 0).backward()
        first.step()
        second.step(closure)
        first.step()

    session, _ = watched(train, "norm:0.0001")
    assert "closure" in session.notices["apart"]
    assert session.steps == 3


# ---- Optimizers


def test_clipping_equals_attach_for_two_optimizers(watched: Watched) -> None:
    def train(model: nn.Sequential, attached: bool) -> None:
        optimizers = [
            torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.AdamW(model[2].parameters(), lr=0.1, fused=True),
        ]
        if attached:
            gradclip.torch.attach(optimizers, "norm:0.5")
        for step in range(5):
            model.zero_grad()
            loss_at(model, step).backward()
            for optimizer in optimizers:
                optimizer.step()

    by_hand, by_run = net(), net()
    train(by_hand, attached=True)
    session, run = watched(lambda: train(by_run, attached=False), "norm:0.5")
    assert torch.equal(weights(by_hand), weights(by_run))
    assert session.clipped == run.column("clipped").sum() > 0


def test_parameters_that_are_added_are_recorded(watched: Watched) -> None:
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.01)

    def train() -> None:
        one_step(model, optimizer)
        optimizer.add_param_group({"params": model[2].parameters()})
        one_step(model, optimizer)

    _, run = watched(train)
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [o.id for o in run.optimizers] == [0]
    assert list(run.norms().names) == names
    assert np.isnan(run.norms().matrix).tolist() == [[False] * 2 + [True] * 2, [False] * 4]


def test_memory_grows_neither_with_steps_nor_with_optimizers(watched: Watched) -> None:
    sizes = []

    def train() -> None:
        model = net()
        optimizer = sgd(model)
        tracemalloc.start()
        for step in range(1600):
            # More than one loss a step.
            (model.get_parameter("2.bias").square().sum() * 0.1).backward()
            one_step(model, optimizer)
            if step in (399, 1599):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        for count in range(120):
            one_step(model, sgd(model))
            if count in (39, 119):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()

    session, run = watched(train, every=1)  # What a batch holds would be seen, too.
    assert session.steps == len(run.steps) == 1720
    assert session.optimizers == {"SGD": 121}
    assert sizes[1] - sizes[0] < 40_000  # 1200 steps: under 34 bytes a step.
    # 80 optimizers, under 1,000 bytes each: a later file would repeat the row of each.
    assert sizes[3] - sizes[2] < 80_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of torch's own, while it compiles.
def test_a_compiled_step_is_seen_and_unchanged(watched: Watched) -> None:
    def train(model: nn.Module) -> None:
        optimizer = sgd(model)
        step = torch.compile(optimizer.step, backend="eager")
        compiled: Any = torch.compile(model, backend="eager")
        for i in range(3):
            optimizer.zero_grad()
            loss_at(compiled, i).backward()
            step()

    plain, seen = net(), net()
    train(plain)
    session, run = watched(lambda: train(seen))
    assert torch.equal(weights(plain), weights(seen))
    assert session.steps == 3
    assert run.optimizers[0].parameters[0].name == "0.weight"


# ---- Several optimizers that cannot share one norm


def test_norms_apart_are_noticed_and_are_not_taken_for_clipping_twice(watched: Watched) -> None:
    nets = [net(), net()]
    optimizers = [sgd(each) for each in nets]
    optimizers[1].register_step_pre_hook(lambda *_: None)

    def train() -> None:
        for step in range(3):
            for each in nets:
                loss_at(each, step).backward()
            for optimizer in optimizers:
                optimizer.step()

    session, run = watched(train, "norm:5", every=1)
    (text,) = session.notices.values()
    assert text.startswith("2× SGD: of one of them, a hook that somebody has put on its steps")
    (event,) = [event for event in run.events if event.name != "loss-mean"]
    assert (event.name, event.text) == ("norms-apart", text)
    assert not [found for found in diagnose(run) if found.kind == "double-clipping"]


def test_an_optimizer_that_is_garbage_is_nobodys_partner(watched: Watched) -> None:
    def train() -> None:
        left, model = net(), net()
        garbage = sgd(left)
        garbage.register_step_pre_hook(lambda *_: None)
        garbage.__dict__["cycle"] = garbage
        loss_at(left, 0).backward()
        del left, garbage
        optimizer = sgd(model)
        loss_at(model, 0).backward()
        optimizer.step()

    was = gc.isenabled()
    gc.disable()
    try:
        session, run = watched(train, "norm:5", every=1)
    finally:
        if was:
            gc.enable()
    assert session.notices == {}
    assert len(run.steps) == 1
