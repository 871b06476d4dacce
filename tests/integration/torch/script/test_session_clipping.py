"""What `gradclip run` sees of the script's own clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad

import gradclip.torch
from gradclip.torch import Clipper
from integration.training import loss_at, net

from .sessions import Watched, one_step, sgd

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
