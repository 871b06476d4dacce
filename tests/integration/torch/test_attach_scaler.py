"""`attach` under a real GradScaler: as with `scaler.unscale_` and gradients clipped by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import NonFiniteError
from gradclip.torch import Clipper, attach
from grads import grad_of
from integration.training import (
    FUSED,
    KINDS,
    ReadsBack,
    clip_by_hand,
    decided_on_device,
    loss_at,
    net,
    owned,
    same,
    snapshot,
    weights,
)

STEPS = 10
OVERFLOWS = (0, 3, 4, 8)
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


@pytest.fixture(params=["host", "device"])
def decided(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with decisions on the host, and with decisions that stay on the device."""
    with decided_on_device() if request.param == "device" else nullcontext():
        yield request.param


def scaler(init_scale: float = 3000.0) -> torch.amp.GradScaler:  # Not a power of two: it rounds.
    return torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)


def scaled_gradients(
    scale: torch.amp.GradScaler, model: nn.Module, step: int, bad: float | None = None
) -> None:
    model.zero_grad()
    scale.scale(loss_at(model, step)).backward()
    if bad is not None:
        grad = next(model.parameters()).grad
        assert grad is not None
        grad[0, 0] = bad


def bare(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler and the clipper left nothing on the optimizer."""
    return not {"grad_scale", "found_inf"} & vars(optimizer).keys()


def train(
    kind: str, *, hand: bool, unscale: bool, nonfinite: Any = "skip"
) -> tuple[Tensor, dict[str, Any], Clipper | None]:
    """Train with overflows; return the weights, the scaler's state and the clipper."""
    model, scale = net(), scaler()
    optimizer = KINDS[kind](model.parameters())
    clipper = None
    if not hand:  # No skip is allowed: the scaler's own must not count.
        clipper = attach(optimizer, "norm:0.5", nonfinite=nonfinite, max_skips=0)
    for step in range(STEPS):
        scaled_gradients(scale, model, step, float("inf") if step in OVERFLOWS else None)
        if unscale:
            scale.unscale_(optimizer)
        if hand and step not in OVERFLOWS:
            clip_by_hand(owned(optimizer))
        before = weights(model)
        scale.step(optimizer)
        scale.update()
        assert bare(optimizer)
        assert torch.equal(weights(model), before) == (step in OVERFLOWS)
    return weights(model), scale.state_dict(), clipper


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_"])
@pytest.mark.parametrize("kind", [*FUSED, "SGD", "Adam-foreach", "RMSprop", "NAdam", "Adagrad"])
@pytest.mark.usefixtures("decided")
def test_as_unscaled_and_clipped_by_hand(kind: str, unscale: bool) -> None:
    # torch's fused SGD keeps a momentum of garbage if its first step is an overflow; attached, not.
    judge = kind.replace("SGD-fused", "SGD")
    expected, expected_scaler, _ = train(judge, hand=True, unscale=True)
    got, state, clipper = train(kind, hand=False, unscale=unscale)
    close(got, expected)
    assert state == expected_scaler
    assert state["scale"] != 3000.0
    assert clipper is not None
    assert (clipper.skipped, clipper.clipped) == (0, 4)  # Steps 1, 6, 7, 9; 2 and 5 are small.


@pytest.mark.parametrize("nonfinite", ["raise", "zero", "propagate"])
@pytest.mark.parametrize("kind", ["Adagrad-fused", "AdamW-fused", "Adam"])
@pytest.mark.usefixtures("decided")
def test_an_overflow_is_the_scalers_whatever_the_policy_says(kind: str, nonfinite: Any) -> None:
    expected, expected_scaler, _ = train(kind, hand=True, unscale=True)
    got, state, _ = train(kind, hand=False, unscale=False, nonfinite=nonfinite)
    close(got, expected)
    assert state == expected_scaler


@pytest.mark.parametrize("kind", FUSED)
def test_an_overflow_leaves_gradients_scaled_and_untouched_on_the_host(kind: str) -> None:
    model, scale = net(), scaler()
    optimizer = KINDS[kind](model.parameters())
    clipper = attach(optimizer, "norm:0.5", model=model)
    scaled_gradients(scale, model, 0, float("inf"))
    before = snapshot(optimizer)["grads"]
    scale.step(optimizer)
    assert same(snapshot(optimizer)["grads"], before)
    assert clipper.last is not None
    assert clipper.last.nonfinite == ("0.weight",)  # The step is seen, and says whose it was.
    assert (bool(clipper.last.skipped), clipper.steps, clipper.skipped) == (True, 1, 0)


@pytest.mark.parametrize("kind", ["AdamW-fused", "SGD-fused", "Adam"])
@pytest.mark.usefixtures("decided")
def test_a_nan_after_the_scalers_check_is_the_clippers(kind: str) -> None:
    """Between `unscale_` and `step` the scaler looks away."""
    model, scale = net(), scaler()
    optimizer = KINDS[kind](model.parameters())
    clipper = attach(optimizer, "norm:0.5", model=model, max_skips=1)

    def unscaled(step: int, bad: float | None = None) -> None:
        scaled_gradients(scale, model, step)
        scale.unscale_(optimizer)
        if bad is not None:
            grad_of(model.get_parameter("0.weight"))[0, 0] = bad

    for step in range(2):
        unscaled(step)
        scale.step(optimizer)
        scale.update()
    before = snapshot(optimizer)
    unscaled(2, float("nan"))
    gradients = snapshot(optimizer)["grads"]
    scale.step(optimizer)
    scale.update()
    after = snapshot(optimizer)
    assert same(after["weights"], before["weights"])
    assert same(after["state"], before["state"])
    assert same(after["grads"], gradients)
    assert clipper.skipped == 1
    assert scale.state_dict()["_growth_tracker"] == 1  # For the scaler it was a good step.
    unscaled(3, float("nan"))
    with pytest.raises(NonFiniteError, match=r"2 steps in a row .* 0\.weight"):
        scale.step(optimizer)
    assert same(snapshot(optimizer)["weights"], before["weights"])


@pytest.mark.usefixtures("decided")
def test_the_scaler_skips_what_it_found_even_if_it_was_mended() -> None:
    model, scale = net(), scaler()
    optimizer = KINDS["AdamW-fused"](model.parameters())
    clipper = attach(optimizer, "norm:0.5")
    before = weights(model)
    for wrong in ("nan after the check", "inf, mended"):
        scaled_gradients(scale, model, 0, None if "nan" in wrong else float("inf"))
        scale.unscale_(optimizer)
        grad_of(model.get_parameter("0.weight"))[0, 0] = float("nan") if "nan" in wrong else 0.0
        scale.step(optimizer)
        scale.update()
        assert torch.equal(weights(model), before)
        assert clipper.state_dict()["in_a_row"] == 1


@pytest.mark.usefixtures("decided")
def test_overflows_do_not_end_or_lengthen_a_row_of_skips() -> None:
    model, scale = net(), scaler()
    optimizer = KINDS["AdamW-fused"](model.parameters())
    clipper = attach(optimizer, "norm:0.5", max_skips=3)
    for step, what in enumerate(("nan", "inf", "nan", "inf", "inf", "nan", "inf")):
        scaled_gradients(scale, model, step, float("inf") if what == "inf" else None)
        scale.unscale_(optimizer)
        if what == "nan":
            grad_of(model.get_parameter("0.weight"))[0, 0] = float("nan")
        scale.step(optimizer)
        scale.update()
    assert clipper.skipped == 3
    assert clipper.state_dict()["in_a_row"] == 3


def test_a_fused_step_under_a_scaler_reads_nothing_back() -> None:
    model, scale = net(), scaler()
    optimizer = KINDS["AdamW-fused"](model.parameters())
    attach(optimizer, "norm:0.5")
    with decided_on_device():
        for step in range(5):
            scaled_gradients(scale, model, step, float("inf") if step == 2 else None)
            with ReadsBack() as reads:
                scale.step(optimizer)
            scale.update()
            assert reads.count == 0


def test_an_error_in_the_step_leaves_the_next_one_right() -> None:
    """The scaler takes its attributes off only after a step that did not raise."""

    class Fragile(torch.optim.SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise OSError("disk")
            return super().step(closure)

    model, twin, scale = net(), net(), scaler()
    optimizer = Fragile(model.parameters(), lr=0.05, fused=True)
    other = torch.optim.SGD(twin.parameters(), lr=0.05)
    attach(optimizer, "norm:0.5")
    scaled_gradients(scale, model, 0)
    with pytest.raises(OSError, match="disk"):
        scale.step(optimizer)
    scale.update(1000.0)
    optimizer.broken = False
    scaled_gradients(scale, model, 2)  # Too small to be clipped: a wrong scale would show.
    scale.step(optimizer)
    loss_at(twin, 2).backward()
    other.step()
    close(weights(model), weights(twin))
    assert bare(optimizer)


def test_a_grad_scale_that_the_user_set_is_honoured_and_stays() -> None:
    model, twin = net(), net()
    optimizer = KINDS["AdamW-fused"](model.parameters())
    other = KINDS["AdamW-fused"](twin.parameters())
    attach(optimizer, "norm:0.5")
    optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    for step in range(3):
        for m, o in ((model, optimizer), (twin, other)):
            m.zero_grad()
            (loss_at(m, step) * (4 if o is optimizer else 1)).backward()
        clip_by_hand(owned(other))
        optimizer.step()
        other.step()
        assert float(optimizer.grad_scale) == 4.0  # type: ignore[attr-defined]
    close(weights(model), weights(twin))


def test_several_optimizers_under_one_scaler() -> None:
    def run(hand: bool) -> tuple[Tensor, dict[str, Any]]:
        model, scale = net(), scaler()
        one = torch.optim.SGD(model[0].parameters(), lr=0.05)
        two = torch.optim.AdamW(model[2].parameters(), lr=0.01, fused=True)
        if not hand:
            attach(one, "norm:0.5")
            attach(two, "norm:0.1")
        for step in range(STEPS):
            scaled_gradients(scale, model, step, float("inf") if step in OVERFLOWS else None)
            if hand:
                scale.unscale_(one)
                scale.unscale_(two)
                if step not in OVERFLOWS:
                    clip_by_hand(owned(one), 0.5)
                clip_by_hand(owned(two), 0.1)
            scale.step(one)
            scale.step(two)
            scale.update()
        return weights(model), scale.state_dict()

    (got, state), (expected, expected_state) = run(hand=False), run(hand=True)
    close(got, expected)
    assert state == expected_state


def test_a_disabled_scaler() -> None:
    model = net()
    optimizer = KINDS["SGD"](model.parameters())
    clipper = attach(optimizer, "norm:0.5")
    scale = torch.amp.GradScaler("cpu", enabled=False)
    scaled_gradients(scale, model, 0)
    scale.step(optimizer)
    scale.update()
    assert (clipper.steps, clipper.clipped) == (1, 1)
