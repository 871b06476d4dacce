"""The fold under a GradScaler, and after steps that raised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from gradclip import NonFiniteError, by_norm
from gradclip.torch import Clipper, attach
from grads import grad_of
from integration.training import MAX_NORM, loss_at, net, owned, scripted_gradients, weights

from .folds import (
    INF,
    LARGE,
    NAN,
    SMALL,
    VARIANTS,
    Kernels,
    adamw,
    bare,
    by_hand,
    close,
    folded,
    norm_of,
)


def scaled_step(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    step: int,
    *,
    bad: float | None = None,
    unscale: bool = False,
) -> None:
    model.zero_grad()
    scaler.scale(loss_at(model, step)).backward()
    if bad is not None:
        next(model.parameters()).grad[0, 0] = bad  # type: ignore[index]
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("decided")
def test_a_scaler_and_the_fold_are_one_division(
    variant: str, unscale: bool, writes: list[str]
) -> None:
    model, twin = net(), net()
    optimizer, other = (VARIANTS[variant](m.parameters()) for m in (model, twin))
    clipper = attach(optimizer, by_norm(MAX_NORM), max_skips=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0, growth_interval=5)
    for step in range(60):
        bad = INF if step % 17 == 3 else None
        scale = scaler.get_scale()
        with Kernels() as kernels:
            scaled_step(scaler, optimizer, model, step, bad=bad, unscale=unscale)
        scaler.update()
        assert folded(clipper)
        assert bare(optimizer)
        if bad is not None:
            continue
        scripted_gradients(twin, step)
        before = norm_of(owned(other))
        clipped = by_hand(other)
        other.step()
        (divisor,) = kernels.scales
        expected = (1 if unscale else scale) * (before / MAX_NORM if clipped else 1)
        assert (divisor or 1.0) == pytest.approx(expected, rel=1e-5)
        assert float(clipper.last.total_norm) == pytest.approx(before, rel=1e-5)  # type: ignore[union-attr]
    close(weights(model), weights(twin))
    assert not writes
    assert clipper.skipped == 0


def test_what_a_scaler_lends_comes_back_before_it_is_deleted() -> None:
    model = net()
    optimizer = adamw(model)
    attach(optimizer, by_norm(MAX_NORM))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(dict(vars(optimizer))))
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    for unscale, expected in ((False, 512.0), (True, None)):
        scaled_step(scaler, optimizer, model, LARGE, unscale=unscale)
        scaler.update()
        assert seen[-1]["grad_scale"] == expected
        assert float(seen[-1]["found_inf"]) == 0


@contextlib.contextmanager
def broken() -> Iterator[None]:
    """Make torch's own fused step raise."""
    with (
        mock.patch("torch.optim.adam._fused_adam", side_effect=OSError("disk")),
        pytest.raises(OSError, match="disk"),
    ):
        yield


@pytest.mark.parametrize("then", ["step", "step, same", "unscale_", "plain", "raise again"])
@pytest.mark.parametrize("step", [LARGE, SMALL])
@pytest.mark.usefixtures("decided")
def test_an_error_in_a_scaled_step_leaves_the_next_one_right(then: str, step: int) -> None:
    """The scaler leaves its attributes there, and multiplies into them the next time."""
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    clipper = attach(optimizer, by_norm(MAX_NORM))
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    before = weights(model)
    with broken():
        scaled_step(scaler, optimizer, model, step)
    assert torch.equal(weights(model), before)
    if then == "step, same":
        scaler.step(optimizer)
    elif then == "plain":
        scripted_gradients(model, step)
        optimizer.step()
    else:
        if then == "raise again":
            scaler.update(500.0)
            with broken():
                scaled_step(scaler, optimizer, model, LARGE)
        scaler.update(1000.0)
        scaled_step(scaler, optimizer, model, step, unscale=then == "unscale_")
    scripted_gradients(twin, step)
    by_hand(other)
    other.step()
    close(weights(model), weights(twin))
    assert folded(clipper)
    assert bare(optimizer)


@pytest.mark.parametrize("mine", [None, 4.0])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.usefixtures("decided")
def test_an_error_in_a_plain_step_leaves_the_next_one_right(
    mine: float | None, scaled: bool
) -> None:
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    if mine:
        optimizer.grad_scale = torch.tensor(mine)  # type: ignore[attr-defined]
    scripted_gradients(model, LARGE)
    with broken():
        optimizer.step()
    model.zero_grad()
    (loss_at(model, SMALL) * (mine or 1.0) * (3000.0 if scaled else 1.0)).backward()
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        assert bare(optimizer)
    else:
        optimizer.step()
        left = vars(optimizer).get("grad_scale")
        assert left == mine if mine else bare(optimizer)
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_the_same_gradients_again_after_an_error_are_clipped() -> None:
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    scripted_gradients(model, LARGE)
    with broken():
        optimizer.step()
    optimizer.step()
    scripted_gradients(twin, LARGE)
    by_hand(other)
    other.step()
    close(_grads(optimizer), _grads(other))
    close(weights(model), weights(twin))


def _grads(optimizer: torch.optim.Optimizer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in owned(optimizer) if p.grad is not None])


def test_an_error_then_one_in_the_closure_then_a_step() -> None:
    """What is mended once must not be mended again."""
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    with broken():
        scaled_step(scaler, optimizer, model, LARGE)

    def closure() -> float:
        raise KeyError("no batch")

    with pytest.raises(KeyError):
        optimizer.step(closure)  # type: ignore[arg-type]
    scaler.update(1000.0)
    scaled_step(scaler, optimizer, model, SMALL)  # Clipped, it would hide a wrong scale.
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_an_error_of_the_clipper_leaves_the_next_step_right() -> None:
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    attach(optimizer, by_norm(MAX_NORM), nonfinite="raise")
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    model.zero_grad()
    scaler.scale(loss_at(model, LARGE)).backward()
    scaler.unscale_(optimizer)
    grad_of(model.get_parameter("0.weight"))[0, 0] = NAN
    with pytest.raises(NonFiniteError):
        scaler.step(optimizer)
    scaler.update()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]  # torch's leftovers
    scaled_step(scaler, optimizer, model, LARGE)
    scripted_gradients(twin, LARGE)
    by_hand(other)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_too_many_skips_under_a_scaler_leave_the_next_step_right() -> None:
    """What raises before the factor is lent leaves the scaler's own scale there."""
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    clipper = attach(optimizer, f"skip-above:1|norm:{MAX_NORM}", max_skips=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    with pytest.raises(NonFiniteError, match="skips a norm"):
        scaled_step(scaler, optimizer, model, LARGE)
    scaler.update(1000.0)
    scaled_step(scaler, optimizer, model, SMALL)
    assert folded(clipper)
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


def test_a_policy_that_does_not_fold_still_works_under_a_scaler() -> None:
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    clipper = attach(optimizer, "norm:0.1,scope=tensor")
    judge = Clipper(twin.named_parameters(), "norm:0.1,scope=tensor")
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    for step in range(4):
        scaled_step(scaler, optimizer, model, step)
        scaler.update()
        assert not folded(clipper)
        scripted_gradients(twin, step)
        judge.clip_()
        other.step()
    close(weights(model), weights(twin))
