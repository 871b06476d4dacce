"""Which loss of a training `gradclip run` gives to which step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grads import grad_of
from integration.training import loss_at, net

from .sessions import Watched, one_step, sgd


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
