"""What `gradclip run` sees of a training: losses, optimizers, and clipping of the script's own."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.utils.checkpoint import checkpoint

import gradclip.torch
from gradclip import PolicyError, Run, diagnose, parse, read_run
from gradclip.record import RecordWriter
from gradclip.torch import Clipper
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session
from grads import grad_of
from integration.training import loss_at, net, weights

Watched = Callable[..., tuple[Session, Run]]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Train under a session; return the session and its record."""

    def run(
        train: Callable[[], object], policy: str | None = None, every: int = 50, **options: Any
    ) -> Any:
        gc.collect()  # A session looks at every optimizer there is: not at those of other tests.
        path = tmp_path / "run.jsonl"
        plan = None if policy is None else parse(policy)
        writer = RecordWriter(path, policy=policy, every=every)
        session = Session(plan, writer=writer, **options)
        try:
            with watch(session):
                train()
        finally:
            session.close("ok")
        return session, read_run(path)

    return run


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> float:
    """Make one ordinary step; return its loss."""
    optimizer.zero_grad()
    loss = loss_at(model, step)
    loss.backward()
    optimizer.step()
    return loss.item()


# ---- The loss


def _by_method(loss: Tensor) -> None:
    loss.backward()


def _by_function(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def _by_function_of_parts(loss: Tensor) -> None:
    torch.autograd.backward([0.25 * loss, 0.75 * loss])


def _with_a_scale(loss: Tensor) -> None:
    torch.amp.GradScaler("cpu", init_scale=3000.0).scale(loss).backward()


def _with_a_scale_of_parts(loss: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    torch.autograd.backward(scaler.scale([0.25 * loss, 0.75 * loss]))


def _with_a_scale_that_is_off(loss: Tensor) -> None:
    torch.amp.GradScaler("cpu", enabled=False).scale(loss).backward()


def _changed_after(loss: Tensor) -> None:
    loss.backward()
    loss.detach().mul_(0)


def _double(loss: Tensor) -> None:
    loss.double().backward()


def _one_element(loss: Tensor) -> None:
    loss.reshape(1, 1).backward()


WAYS = [
    _by_method,
    _by_function,
    _by_function_of_parts,
    _with_a_scale,
    _with_a_scale_of_parts,
    _with_a_scale_that_is_off,
    _changed_after,
    _double,
    _one_element,
]


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_what_backward_was_called_on(
    way: Callable[[Tensor], None], watched: Watched
) -> None:
    model = net()
    optimizer = sgd(model)
    losses = []

    def train() -> None:
        for step in range(3):
            loss = loss_at(model, step)
            losses.append(loss.item())
            way(loss)
            optimizer.step()

    _, run = watched(train)
    np.testing.assert_allclose(run.column("loss"), losses, rtol=1e-6)


def test_under_accumulation_it_is_the_mean(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)
    losses = []

    def train() -> None:
        for step in range(2):
            optimizer.zero_grad()
            for micro in range(3):
                loss = loss_at(model, 3 * step + micro)
                losses.append(loss.item())
                loss.backward()
            optimizer.step()

    _, run = watched(train)
    np.testing.assert_allclose(run.column("loss"), np.reshape(losses, (2, 3)).mean(1), rtol=1e-6)


def test_two_optimizers_that_alternate_have_each_its_own(watched: Watched) -> None:
    generator, critic = net(0), net(1)
    first, second = sgd(generator), torch.optim.Adam(critic.parameters())
    losses: list[list[float]] = []

    def train() -> None:
        for step in range(3):
            losses.append([one_step(generator, first, step), one_step(critic, second, 10 + step)])

    session, run = watched(train)
    assert session.optimizers == {"SGD": 1, "Adam": 1}
    assert session.steps == 6
    for i in range(2):
        np.testing.assert_allclose(run.column("loss", i), np.array(losses)[:, i], rtol=1e-6)


def test_two_optimizers_of_one_loss_share_it(watched: Watched) -> None:
    model = net()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2))
    losses = []

    def train() -> None:
        for step in range(3):
            loss = loss_at(model, step)
            losses.append(loss.item())
            loss.backward()
            first.step()
            second.step()
        second.step()  # No backward before this one: no loss.

    session, run = watched(train)
    assert session.optimizers == {"SGD": 2}
    np.testing.assert_allclose(run.column("loss"), [*losses, np.nan], rtol=1e-6)


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


def test_each_call_of_a_closure_is_a_row_with_its_loss(watched: Watched) -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=4)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_at(model, 0)
        losses.append(loss.item())
        loss.backward()
        return loss

    def train() -> None:
        for _ in range(2):
            optimizer.step(closure)

    session, run = watched(train)
    assert session.steps == len(losses) > 4
    np.testing.assert_allclose(run.column("loss"), losses, rtol=1e-6)


def test_backward_inside_of_backward_is_no_loss(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)

    def train() -> None:
        x = torch.ones(1, 6, requires_grad=True)
        inner: Any = checkpoint(lambda x: model(x).sum(), x, use_reentrant=True)
        (inner * 0 + 7).backward()
        optimizer.step()

    _, run = watched(train)
    assert run.column("loss").tolist() == [7.0]


def test_the_loss_of_a_step_that_a_scaler_left_out_is_dropped(watched: Watched) -> None:
    model = net()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    losses = []

    def train() -> None:
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_at(model, step)
            scaler.scale(loss).backward()
            if step == 1:
                grad_of(model.get_parameter("0.weight"))[0, 0] = float("inf")
            else:
                losses.append(loss.item())
            scaler.step(optimizer)
            scaler.update()

    _, run = watched(train)
    np.testing.assert_allclose(run.column("loss"), losses, rtol=1e-6)


def test_a_backward_that_is_no_loss_leaves_the_step_without(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)

    def train() -> None:
        outputs = model(torch.ones(2, 6))
        outputs.backward(torch.ones_like(outputs))
        optimizer.step()

    _, run = watched(train)
    assert not run.seen("loss").any()
    assert run.column("norm")[0] > 0


# ---- Clipping of the script's own

NOTICED = {
    "function": lambda ps: torch.nn.utils.clip_grad_norm_(ps, 0.5),
    "module": lambda ps: clip_grad.clip_grad_norm_(ps, max_norm=torch.tensor(0.5)),  # type: ignore[arg-type]
    "keywords": lambda ps: torch.nn.utils.clip_grad_norm_(parameters=ps, max_norm=0.5),
    "value": lambda ps: torch.nn.utils.clip_grad_value_(ps, clip_value=0.5),
    "with norm": lambda ps: torch.nn.utils.clip_grads_with_norm_(ps, 0.5, torch.tensor(9.0)),
    "gradclip's": lambda ps: gradclip.torch.clip_grad_norm_(ps, 0.5),
}


def _imported_late(params: Any) -> None:
    from torch.nn.utils import clip_grad_norm_

    clip_grad_norm_(params, 0.5)


NOTICED["imported late"] = _imported_late


@pytest.mark.parametrize("way", NOTICED)
def test_the_scripts_own_clipping_is_noticed_once(way: str, watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)

    def train() -> None:
        for step in range(3):
            loss_at(model, step).backward()
            NOTICED[way]([*model.parameters()])
            optimizer.step()

    session, run = watched(train, every=1)
    (text,) = session.notices.values()
    assert text.startswith("the script clips by itself: clip_grad")
    assert text.endswith("_(…, 0.5)")
    assert [(e.name, e.text, e.step) for e in run.events] == [("script-clips", text, 1)]


def test_clipping_to_infinity_only_measures(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)

    def train() -> None:
        loss_at(model, 0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()

    assert not watched(train)[0].notices


@pytest.mark.parametrize("args", [(), (None,), ("x",), (1.0, 2.0, False, None, "many")])
def test_a_wrong_call_raises_what_it_always_raises(args: tuple[Any, ...], watched: Watched) -> None:
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)

    def said() -> str:
        with pytest.raises((TypeError, ValueError)) as raised:
            torch.nn.utils.clip_grad_norm_([weight], *args)
        return str(raised.value)

    expected = said()
    watched(lambda: expected == said() or pytest.fail(said()))


def test_several_clippers_of_the_scripts_are_one_notice(watched: Watched) -> None:
    models = [net(0), net(1)]
    optimizers = [sgd(model) for model in models]

    def train() -> None:
        for model, optimizer in zip(models, optimizers, strict=True):
            gradclip.torch.attach(optimizer, "norm:0.25")
            one_step(model, optimizer)

    session, run = watched(train)
    assert len(run.events) == len(session.notices) == 1


def test_nothing_is_left_behind(watched: Watched) -> None:
    places = [
        (torch.autograd, "backward"),
        (torch.amp.GradScaler, "scale"),
        (torch.amp.GradScaler, "update"),
        (torch.nn.utils, "clip_grad_norm_"),
        (clip_grad, "clip_grad_value_"),
        (gradclip.torch, "clip_grad_norm_"),
        (Clipper, "clip_"),
    ]
    before = [vars(place)[name] for place, name in places]

    def train() -> None:
        during = [vars(place)[name] for place, name in places]
        assert not any(a is b for a, b in zip(before, during, strict=True))

    watched(train)
    assert [vars(place)[name] for place, name in places] == before
    model = net()
    optimizer = sgd(model)
    one_step(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("policy", [None, "norm:9"])
@pytest.mark.parametrize("attach_at", [0, 2])
def test_an_attached_clipper_is_observed_in_place_of_ours(
    attach_at: int, policy: str | None, watched: Watched
) -> None:
    model = net()
    optimizer = sgd(model)
    clippers: list[Clipper] = []

    def train() -> None:
        for step in range(5):
            if step == attach_at:
                clippers.append(gradclip.torch.attach(optimizer, "norm:0.25", model=model))
            one_step(model, optimizer)

    session, run = watched(train, policy)
    assert clippers[0].steps == 5 - attach_at
    assert session.optimizers == {"SGD": 1}
    assert session.steps == 5
    np.testing.assert_allclose(run.column("clipped_norm")[attach_at:], 0.25, rtol=1e-6)
    assert run.column("norm")[-1] > 0.25
    (text,) = session.notices.values()
    assert ("--clip is left out" in text) == (policy is not None)
    assert "norm:0.25" in text


def test_when_the_script_detaches_its_clipper_ours_goes_on(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)

    def train() -> None:
        clipper = gradclip.torch.attach(optimizer, "norm:0.25")
        for step in range(4):
            if step == 2:
                clipper.detach()
            one_step(model, optimizer)

    _, run = watched(train, "norm:0.5")
    np.testing.assert_allclose(run.column("clipped_norm"), [0.25, 0.25, 0.5, 0.5], rtol=1e-6)


def test_a_clipper_by_hand_is_observed_with_its_first_step(watched: Watched) -> None:
    model = net()
    optimizer = sgd(model)
    norms, losses = [], []

    def train() -> None:
        clipper = Clipper(model.named_parameters(), "norm:0.25")
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_at(model, step)
            loss.backward()
            norms.append(float(clipper.clip_().total_norm))
            losses.append(loss.item())
            optimizer.step()

    session, run = watched(train, "norm:0.1")
    np.testing.assert_allclose(run.column("norm"), norms)
    np.testing.assert_allclose(run.column("loss"), losses, rtol=1e-6)
    assert run.column("clipped_norm")[0] == pytest.approx(0.25)  # And not 0.1: --clip is left out.
    assert session.steps == 3
    assert not optimizer._optimizer_step_pre_hooks


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
