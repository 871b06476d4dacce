"""`attach` and gradients with inf or NaN: what a skipped step must not touch, and who is told."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import ClipResult, NonFiniteError
from gradclip.torch import attach
from integration.training import (
    FUSED,
    KINDS,
    STEPS,
    ReadsBack,
    clip_by_hand,
    decided_on_device,
    loss_at,
    net,
    owned,
    same,
    scripted_gradients,
    snapshot,
    weights,
)

NAN, INF = float("nan"), float("inf")
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


@pytest.fixture(params=["host", "device"])
def decided(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with decisions on the host, and with decisions that stay on the device."""
    with decided_on_device() if request.param == "device" else nullcontext():
        yield request.param


def adam(model: nn.Module, **options: Any) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01, **options)


def counters(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return each parameter's step counter, 0 where there is none yet."""
    return [float(optimizer.state[p].get("step", 0)) for p in owned(optimizer)]


# ---- skip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("decided")
def test_a_skipped_step_changes_no_bit(kind: str) -> None:
    """The weights, momentum, counters and gradients stay; the rest is as if it never was."""
    model, twin = net(), net()
    optimizer, other = KINDS[kind](model.parameters()), KINDS[kind](twin.parameters())
    clipper = attach(optimizer, "norm:0.5")
    for step in range(STEPS):
        bad = {1: NAN, 4: INF, 5: -INF}.get(step)
        scripted_gradients(model, step, bad)
        before = snapshot(optimizer)
        optimizer.step()
        assert not {"found_inf", "grad_scale"} & vars(optimizer).keys()
        if bad is not None:
            assert same(snapshot(optimizer), before)
            assert bool(clipper.last.skipped)  # type: ignore[union-attr]
            assert not bool(clipper.last.clipped)  # type: ignore[union-attr]
            continue
        scripted_gradients(twin, step)
        clip_by_hand(owned(other))
        other.step()
    close(weights(model), weights(twin))
    assert (clipper.steps, clipper.skipped) == (STEPS, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("decided")
def test_a_first_step_that_is_skipped_leaves_no_trace(kind: str) -> None:
    """Fused SGD skipped by `found_inf` at its first step would keep a momentum of garbage."""
    model, twin = net(), net()
    optimizer, other = KINDS[kind](model.parameters()), KINDS[kind](twin.parameters())
    attach(optimizer, "norm:0.5")
    before = weights(model)
    scripted_gradients(model, 0, NAN)
    optimizer.step()
    assert torch.equal(weights(model), before)
    assert counters(optimizer) == counters(other)
    for step in (0, 1, 2):
        for m, o in ((model, optimizer), (twin, other)):
            scripted_gradients(m, step)
            if o is other:
                clip_by_hand(owned(o))
            o.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_a_closure_that_makes_a_bad_gradient_is_skipped() -> None:
    model = net()
    optimizer = adam(model, weight_decay=0.1)
    clipper = attach(optimizer, "norm:0.5")

    def closure(bad: float | None) -> float:
        scripted_gradients(model, 0, bad)
        return 0.0

    optimizer.step(lambda: closure(None))
    before = snapshot(optimizer)
    optimizer.step(lambda: closure(NAN))
    after = snapshot(optimizer)
    assert same(after["weights"], before["weights"])
    assert same(after["state"], before["state"])
    assert bool(after["grads"][0].isnan().any())
    assert (clipper.steps, clipper.skipped) == (2, 1)


def test_lbfgs_leaves_the_weights() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    clipper = attach(optimizer, "norm:0.5")
    bad: float | None = None

    def closure() -> Tensor:
        scripted_gradients(model, 0, bad)
        return loss_at(model, 0)

    optimizer.step(closure)
    before, steps = snapshot(optimizer), clipper.steps
    bad = INF
    optimizer.step(closure)
    after = snapshot(optimizer)
    assert same(after["weights"], before["weights"])
    assert same(after["state"], before["state"])
    assert (clipper.steps - steps, clipper.skipped) == (1, 1)
    bad = None
    optimizer.step(closure)
    assert not torch.equal(weights(model), torch.cat([w.flatten() for w in before["weights"]]))


def test_sparse_adam_is_skipped() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    clipper = attach(optimizer, "norm:0.5")
    before = table.weight.detach().clone()
    (table(torch.tensor([1, 1, 3])).square().sum() * INF).backward()
    optimizer.step()
    assert torch.equal(table.weight, before)
    assert counters(optimizer) == [0]
    assert clipper.skipped == 1
    grad = table.weight.grad
    assert grad is not None
    assert not grad.is_coalesced()  # Not even that was touched.
    assert grad._nnz() == 3


# ---- without reading the device ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Adam-fused", "AdamW-fused", "Adagrad-fused"])
def test_a_fused_optimizer_skips_without_reading_the_device(kind: str) -> None:
    def run(device: bool) -> tuple[dict[str, Any], int, int]:
        model = net()
        optimizer = KINDS[kind](model.parameters())
        clipper = attach(optimizer, "norm:0.5")
        with decided_on_device() if device else nullcontext(), ReadsBack() as reads:
            for step in range(STEPS):
                scripted_gradients(model, step, NAN if step in (3, 4) else None)
                before = snapshot(optimizer)
                optimizer.step()
                if step in (3, 4):
                    assert same(snapshot(optimizer), before)
        return snapshot(optimizer), reads.count, clipper.skipped

    on_device, reads, skipped = run(device=True)
    on_host, _, host_skipped = run(device=False)
    assert (reads, skipped) == (0, 2)
    with ReadsBack() as control:
        assert bool(torch.ones(1))
    assert control.count == 1
    assert host_skipped == 2
    for name in ("weights", "grads"):
        close(on_device[name], on_host[name], equal_nan=True)
    assert on_device["state"]["state"][0]["step"] == STEPS - 2


def test_other_optimizers_on_a_device_read_once_a_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    attach(optimizer, "norm:0.5")
    with decided_on_device(), ReadsBack() as reads:
        for step in range(4):
            scripted_gradients(model, step)
            optimizer.step()
    assert reads.count == 4


@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_nothing_is_read_where_nothing_is_skipped(nonfinite: Any) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    attach(optimizer, "norm:0.5", nonfinite=nonfinite)
    with decided_on_device(), ReadsBack() as reads:
        for step in range(4):
            scripted_gradients(model, step, NAN if step == 2 else None)
            optimizer.step()
    assert reads.count == 0


# ---- too many skips ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW-fused"])
@pytest.mark.usefixtures("decided")
def test_more_skips_in_a_row_than_allowed_raise_and_touch_nothing(kind: str) -> None:
    model = net()
    optimizer = KINDS[kind](model.parameters())
    clipper = attach(optimizer, "norm:0.5", model=model, max_skips=2)
    seen: list[ClipResult] = []
    clipper.observers.append(seen.append)
    for step in range(3):
        scripted_gradients(model, step)
        optimizer.step()
    before = snapshot(optimizer)
    told = re.escape(
        "3 steps in a row were skipped (max_skips=2): the gradient of 0.weight holds inf or NaN; "
        "the last norms were inf, inf, inf; the gradients and the weights are untouched"
    )
    for _ in range(2):
        scripted_gradients(model, 3, INF)
        optimizer.step()
    scripted_gradients(model, 3, INF)
    gradients = snapshot(optimizer)["grads"]
    with pytest.raises(NonFiniteError, match=f"^{told}$"):
        optimizer.step()
    after = snapshot(optimizer)
    assert same(after["weights"], before["weights"])
    assert same(after["state"], before["state"])
    assert same(after["grads"], gradients)
    assert bool(after["grads"][0].isinf().any())
    assert len(seen) == 6  # The observers saw the step that raised, too.
    assert clipper.last is not None
    assert clipper.last.nonfinite == ("0.weight",)
    scripted_gradients(model, 4)
    optimizer.step()  # One may go on all the same.
    assert not torch.equal(weights(model), torch.cat([w.flatten() for w in after["weights"]]))


@pytest.mark.usefixtures("decided")
def test_a_good_step_ends_the_row() -> None:
    model = net()
    optimizer = adam(model, fused=True)
    clipper = attach(optimizer, "norm:0.5", max_skips=2)
    for step in range(9):
        scripted_gradients(model, step, None if step % 3 == 2 else NAN)
        optimizer.step()
    assert (clipper.steps, clipper.skipped) == (9, 6)


# ---- raise, zero, propagate ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW-fused", "RMSprop-foreach"])
@pytest.mark.usefixtures("decided")
def test_raise_touches_nothing(kind: str) -> None:
    model = net()
    optimizer = KINDS[kind](model.parameters())
    attach(optimizer, "norm:0.5", model=model, nonfinite="raise")
    scripted_gradients(model, 0)
    optimizer.step()
    scripted_gradients(model, 1, NAN)
    before = snapshot(optimizer)
    for call in (lambda: optimizer.step(), lambda: optimizer.step(lambda: 0.0)):
        with pytest.raises(NonFiniteError, match=r"^the gradient of 0\.weight holds inf or NaN;"):
            call()
        assert same(snapshot(optimizer), before)
    assert not {"found_inf", "grad_scale"} & vars(optimizer).keys()


@pytest.mark.parametrize("kind", ["SGD", "AdamW-fused"])
@pytest.mark.usefixtures("decided")
def test_zero_clips_what_is_left(kind: str) -> None:
    model, twin = net(), net()
    optimizer, other = KINDS[kind](model.parameters()), KINDS[kind](twin.parameters())
    clipper = attach(optimizer, "norm:0.5", nonfinite="zero")
    for step in range(STEPS):
        scripted_gradients(model, step, NAN if step % 2 else None)
        optimizer.step()
        scripted_gradients(twin, step, 0.0 if step % 2 else None)
        clip_by_hand(owned(other))
        other.step()
    close(weights(model), weights(twin))
    assert clipper.skipped == 0


@pytest.mark.usefixtures("decided")
def test_propagate_does_as_torch_does() -> None:
    model, twin = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    clipper = attach(optimizer, "norm:0.5", nonfinite="propagate")
    scripted_gradients(model, 0, INF)
    optimizer.step()
    scripted_gradients(twin, 0, INF)
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    other.step()
    torch.testing.assert_close(weights(model), weights(twin), rtol=0, atol=0, equal_nan=True)
    assert clipper.skipped == 0


def test_fused_kinds_are_tested() -> None:
    assert len(FUSED) == 4
