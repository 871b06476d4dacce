"""What a step tells of the loss by itself: the wrong reduction, and a loss scaler."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradclip.errors import PolicyError
from gradclip.torch import per_sample

LABELS = torch.tensor([0, 3, 1, 2])
Loss = Callable[[Tensor], Tensor]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def x_of(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(1))


def first_step(reduction: Any, loss: Loss, batch: int = 4) -> int:
    """Return how many steps were clipped, which is 1 if the step is not refused."""
    model = net()
    with per_sample(model, "norm:1.0", reduction) as clipper:
        loss(model(x_of(batch))).backward()
        clipper.clip_()
    return clipper.steps


MEANS: dict[str, Loss] = {
    "cross entropy": lambda z: F.cross_entropy(z, LABELS[: len(z)]),
    "of tokens": lambda z: F.cross_entropy(z[:, :, None], LABELS[: len(z), None]),
    "nll": lambda z: F.nll_loss(F.log_softmax(z, 1), LABELS[: len(z)]),
    "mse": lambda z: F.mse_loss(z, torch.zeros_like(z)),
    "l1": lambda z: F.l1_loss(z, torch.zeros_like(z)),
    "huber": lambda z: F.huber_loss(z, torch.zeros_like(z)),
    "bce": lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)),
    "written": lambda z: ((z - 1) ** 2).mean(),
    "one by one": lambda z: ((z - 1) ** 2).flatten(1).sum(1).mean(),
    "axis by axis": lambda z: ((z - 1) ** 2).mean(0).sum(),
    "none, then mean": lambda z: (
        F.mse_loss(z, torch.zeros_like(z), reduction="none").mean(-1).mean()
    ),
    "of a transpose": lambda z: (z.t() - 1).abs().mean(),
}
SUMS: dict[str, Loss] = {
    "cross entropy": lambda z: F.cross_entropy(z, LABELS[: len(z)], reduction="sum"),
    "mse": lambda z: F.mse_loss(z, torch.zeros_like(z), reduction="sum"),
    "written": lambda z: ((z - 1) ** 2).sum(),
    "features' mean": lambda z: ((z - 1) ** 2).mean(1).sum(),
    "features' mean later": lambda z: ((z - 1) ** 2).sum(0).mean(),
}


@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_a_mean_is_no_sum(loss: Loss) -> None:
    first_step("mean", loss)
    with pytest.raises(PolicyError, match="the loss is a mean over the samples"):
        first_step("sum", loss)
    first_step("sum", loss, batch=1)  # Of one sample both are the same.


@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_a_sum_is_no_mean(loss: Loss) -> None:
    first_step("sum", loss)
    with pytest.raises(PolicyError, match="the loss is a sum over the samples"):
        first_step("mean", loss)
    first_step("mean", loss, batch=1)


SCALED: dict[str, Loss] = {
    "a sum over the batch's size": lambda z: (z - 1).abs().sum() / len(z),
    "divided before": lambda z: ((z - 1).abs() / len(z)).sum(),
    "divided to accumulate": lambda z: (z - 1).abs().mean() / 8,
    "times the batch's size": lambda z: (z - 1).abs().mean() * len(z),
    "a mask": lambda z: ((z - 1).abs() * torch.tensor([[1.0], [1.0], [0.0], [1.0]])).sum() / 3,
    "two terms": lambda z: (z - 1).abs().sum() / len(z) + z.square().mean(),
    "class weights": lambda z: F.cross_entropy(
        z, LABELS, weight=torch.full((4,), 1 / len(z)), reduction="sum"
    ),
    "positive weights": lambda z: F.binary_cross_entropy_with_logits(
        z, torch.ones_like(z), pos_weight=torch.full((4,), 1 / len(z)), reduction="sum"
    ),
    "a factor of a difference": lambda z: torch.sub(torch.ones_like(z), z, alpha=1 / len(z)).sum(),
    "some samples": lambda z: z[:2].square().mean(),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", SCALED.values(), ids=SCALED)
def test_what_is_not_certain_is_let_pass(loss: Loss, reduction: Any) -> None:
    assert first_step(reduction, loss) == 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_gradient_given_to_backward_scales_the_loss(reduction: Any) -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", reduction)
    model(x_of()).abs().sum().backward(torch.tensor(0.25))
    clipper.clip_()
    other = per_sample(model, "norm:1.0", reduction)
    model.zero_grad()
    torch.autograd.backward([model(x_of()).abs().mean()], [torch.tensor(4.0)])
    other.clip_()
    assert clipper.steps == other.steps == 1


def test_axes_that_changed_places_are_not_certain() -> None:
    assert first_step("sum", lambda z: z.square().t().mean(0).sum()) == 1
    assert first_step("mean", lambda z: z.square().t().sum(0).mean()) == 1


def test_a_head_outside_of_the_model_hides_the_loss() -> None:
    model, head = net(), nn.Linear(4, 1)
    clipper = per_sample(model, "norm:1.0", "sum")
    head(model(x_of())).mean().backward()
    clipper.clip_()
    assert clipper.steps == 1


def test_the_first_batch_of_several_samples_is_looked_at() -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", "sum")
    for batch in (1, 4):
        model.zero_grad()
        model(x_of(batch)).square().mean().backward()
        if batch == 1:
            clipper.clip_()
    with pytest.raises(PolicyError, match="the loss is a mean"):
        clipper.clip_()


def test_no_graph_is_held() -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", "mean")
    out = model(x_of())
    node = weakref.ref(out)
    del out
    gc.collect()
    assert node() is None
    assert clipper.steps == 0


# ---- a numeric test of two samples alone, by itself ------------------------------------------


def test_backward_checks_the_loss_once() -> None:
    model, calls = net(), []

    def loss(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x).square().sum() / len(x)

    clipper = per_sample(model, "norm:1.0", "mean")
    for _ in range(2):
        model.zero_grad()
        value = clipper.backward(loss, x_of())
        assert value.shape == ()
        assert not value.requires_grad
        clipper.clip_()
    assert calls == [2, 1, 1, 2, 4, 4]


@pytest.mark.parametrize(
    ("reduction", "says", "loss"),
    [
        ("sum", "the loss is a mean over the samples", lambda z: z.square().sum() / len(z)),
        ("mean", "the loss is a sum over the samples", lambda z: 3 * z.square().sum()),
        ("mean", "mixes samples", lambda z: F.cross_entropy(z @ z.t(), torch.arange(len(z)))),
    ],
)
def test_backward_refuses_what_check_refuses(reduction: Any, says: str, loss: Loss) -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", reduction)
    with pytest.raises(PolicyError, match=says):
        clipper.backward(lambda x: loss(model(x)), x_of())
    assert all(p.grad is None for p in model.parameters())


def test_backward_waits_for_samples_that_tell_something() -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", "sum")

    def loss(x: Tensor) -> Tensor:
        return (model(x) * x[:, :1]).sum() / len(x)

    clipper.backward(loss, x_of(1))
    clipper.clip_()
    model.zero_grad()
    clipper.backward(loss, torch.zeros(4, 3))
    clipper.clip_()
    with pytest.raises(PolicyError, match="a mean over the samples"):
        clipper.backward(loss, x_of())


# ---- loss scalers ----------------------------------------------------------------------------


def scaler_of(scale: float = 1024.0) -> Any:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)


def plain_step(reduction: Any, x: Tensor) -> tuple[list[Tensor], Any]:
    model = net()
    with per_sample(model, "norm:0.5", reduction) as clipper:
        loss = model(x).square()
        (loss.mean() if reduction == "mean" else loss.sum()).backward()
        result = clipper.clip_()
    return [p.grad for p in model.parameters() if p.grad is not None], result


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1024.0, 1000.0, 1.0])
def test_a_scaler_changes_nothing(reduction: Any, scale: float) -> None:
    x = x_of()
    want, told = plain_step(reduction, x)
    model, scaler = net(), scaler_of(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    clipper = per_sample(model, "norm:0.5", reduction)
    loss = model(x).square()
    scaler.scale(loss.mean() if reduction == "mean" else loss.sum()).backward()
    scaler.unscale_(optimizer)
    result = clipper.clip_(grad_scaler=scaler)
    torch.testing.assert_close(result.sample_norms, told.sample_norms, rtol=1e-5, atol=0)
    assert float(result.sensitivity) == float(told.sensitivity)
    scaler.step(optimizer)
    scaler.update()
    for p, old, g in zip(model.parameters(), before, want, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(p.detach(), old - 0.5 * g, rtol=1e-5, atol=1e-6)


def test_a_scaler_with_micro_batches_and_steps() -> None:
    model, scaler = net(), scaler_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    clipper = per_sample(model, "norm:0.5", "mean")
    want, _ = plain_step("mean", x_of())
    for _ in range(3):  # The scale grows in each.
        optimizer.zero_grad()
        for part in x_of().split(2):
            scaler.scale(model(part).square().mean()).backward()
            clipper.accumulate(grad_scaler=scaler)
        scaler.unscale_(optimizer)
        clipper.clip_(grad_scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        for p, g in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)
    assert scaler.get_scale() == 8 * 1024


def test_an_overflow_is_the_scalers_to_skip() -> None:
    model, scaler = net(), scaler_of(2.0**127)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    clipper = per_sample(model, "norm:0.5", "sum")
    scaler.scale(model(x_of() * 100).square().sum()).backward()
    scaler.unscale_(optimizer)
    clipper.clip_(grad_scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def scaled(model: nn.Module, scaler: Any) -> None:
    loss = model(x_of()).square().mean()
    scaler.scale(loss).backward()


def test_gradients_that_are_still_scaled_are_refused_and_may_then_be_unscaled() -> None:
    model, scaler = net(), scaler_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    clipper = per_sample(model, "norm:0.5", "mean")
    scaled(model, scaler)
    with pytest.raises(PolicyError, match=r"call scaler.unscale_\(optimizer\) before clip_"):
        clipper.clip_(grad_scaler=scaler)
    scaler.unscale_(optimizer)
    assert clipper.clip_(grad_scaler=scaler).sample_norms.shape == (4,)


def test_a_scaler_that_is_not_named_is_found_out() -> None:
    model, scaler = net(), scaler_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    clipper = per_sample(model, "norm:0.5", "mean")
    scaled(model, scaler)
    scaler.unscale_(optimizer)
    with pytest.raises(PolicyError, match=r"clip_\(grad_scaler=scaler\)"):
        clipper.clip_()


def test_what_is_no_scaler_or_scaled_nothing_is_refused() -> None:
    model = net()
    clipper = per_sample(model, "norm:0.5", "mean")
    model(x_of()).square().mean().backward()
    with pytest.raises(PolicyError, match=r"give a torch.amp.GradScaler"):
        clipper.clip_(grad_scaler=2.0)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="has not scaled a loss yet"):
        clipper.clip_(grad_scaler=scaler_of())
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert math.isfinite(float(clipper.clip_(grad_scaler=off).removed))
