"""Per-sample clipping over steps: micro-batches, weights, NaN, memory and hooks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sample_oracle as oracle
from gradclip import by_norm, online_quantile
from gradclip.errors import NonFiniteError, PolicyError
from gradclip.torch import per_sample

from .sample_training import assert_close, backward, data, grads, loss_of, net, samples_of, step

# ---- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_of_other_sizes_give_what_the_whole_batch_gives(reduction: Any) -> None:
    model, (x, y) = net(), data(9)
    clipper = per_sample(model, "norm:7.5", reduction)
    whole = step(clipper, model, x, y)
    expected = {name: grad.double() for name, grad in grads(model).items()}
    model.zero_grad()
    for low, high in ((0, 2), (2, 6), (6, 9)):
        backward(clipper, model, x[low:high], y[low:high])
        clipper.accumulate()
    parts = clipper.clip_()
    assert_close(model, expected)
    torch.testing.assert_close(parts.sample_norms, whole.sample_norms, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(parts.sample_coef, whole.sample_coef, rtol=1e-6, atol=0.0)
    assert 0 < int(parts.clipped) == int(whole.clipped) < 9
    torch.testing.assert_close(parts.removed, whole.removed)
    assert float(parts.sensitivity) == float(whole.sensitivity)
    assert clipper.steps == 2


def test_the_last_micro_batch_needs_no_accumulate() -> None:
    model, (x, y) = net(), data(6)
    clipper = per_sample(model, "norm:2.0", "sum")
    step(clipper, model, x, y)
    expected = {name: grad.double() for name, grad in grads(model).items()}
    model.zero_grad()
    backward(clipper, model, x[:4], y[:4])
    clipper.accumulate()
    backward(clipper, model, x[4:], y[4:])
    assert len(clipper.clip_().sample_norms) == 6
    assert_close(model, expected)


def test_batches_of_changing_size_follow_one_another() -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", "mean", expected_batch_size=4)
    for batch in (3, 1, 7):
        x, y = data(batch, seed=batch)
        result = step(clipper, model, x, y)
        clipped = [oracle.rescaled(g, 1.0) for g in samples_of(model, x, y)]
        assert_close(model, {n: g / 4 for n, g in oracle.added(clipped).items()})
        assert float(result.sensitivity) == 0.25


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_empty_batch_leaves_zeros(reduction: Any) -> None:
    model = net()
    clipper = per_sample(model, online_quantile(), reduction)
    step(clipper, model, *data(3))
    before = clipper.state_dict()["limits"][0]
    result = step(clipper, model, *data(0))
    assert result.sample_norms.shape == result.sample_coef.shape == (0,)
    assert (int(result.clipped), float(result.removed)) == (0, 0.0)
    assert all(not grad.any() for grad in grads(model).values())
    assert len(grads(model)) == 6
    assert torch.equal(clipper.state_dict()["limits"][0], before)


def test_an_empty_batch_of_a_module_that_no_formula_knows_leaves_zeros() -> None:
    model = nn.ConvTranspose1d(3, 2, 1)
    clipper = per_sample(model, "norm:1.0", "sum")
    for batch in (0, 2):
        model.zero_grad()
        model(torch.ones(batch, 3, 4)).sum().backward()
        assert clipper.clip_().sample_norms.shape == (batch,)
        assert all(bool(grad.any()) == (batch > 0) for grad in grads(model).values())


def test_what_is_compared_is_the_first_step_with_samples() -> None:
    model = net()
    clipper = per_sample(model, "norm:1.0", "sum")
    step(clipper, model, *data(0))
    backward(clipper, model, *data(3))
    grad = next(model.parameters()).grad
    assert grad is not None
    grad += 1.0
    with pytest.raises(PolicyError, match="do not add up"):
        clipper.clip_()
    step(clipper, model, *data(3))
    backward(clipper, model, *data(3))  # On top of what clip_() left, which is replaced.
    clipped = [oracle.rescaled(g, 1.0) for g in samples_of(model, *data(3))]
    clipper.clip_()
    assert_close(model, oracle.added(clipped))


class Branches(nn.Module):
    """Uses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, *, right: bool = False) -> Tensor:
        return self.right(x) if right else self.left(x)


def test_a_parameter_that_took_no_part_keeps_no_old_gradient() -> None:
    model, (x, _) = Branches(), data(3)
    clipper = per_sample(model, "norm:1.0", "sum")
    model(x).square().sum().backward()
    clipper.clip_()
    assert model.right.weight.grad is None
    model(x, right=True).square().sum().backward()  # Nobody has cleared .grad.
    result = clipper.clip_()
    assert result.ran == {"ghost": ("right",)}
    assert model.left.weight.grad is not None
    assert not model.left.weight.grad.any()
    assert model.right.weight.grad is not None


def test_weights_leave_out_padded_samples() -> None:
    model, (x, y) = net(), data(5)
    weights = [1.0, 0.0, 0.5, 1.0, 0.0]
    x[4] = math.nan  # What is padded may hold anything.
    samples = samples_of(model, x.nan_to_num(0.0), y)
    clipper = per_sample(model, "norm:2.0", "mean")
    backward(clipper, model, x, y)
    result = clipper.clip_(torch.tensor(weights))
    clipped = [oracle.rescaled(g, 2.0) for g in samples]
    assert_close(model, {n: g / 5 for n, g in oracle.added(clipped, weights).items()})
    assert result.left_out == ()
    assert result.sample_coef[[1, 4]].tolist() == [0.0, 0.0]
    coefs = [min(1.0, 2.0 / oracle.norm(g)) * w for g, w in zip(samples, weights, strict=True)]
    torch.testing.assert_close(result.sample_coef.float(), torch.tensor(coefs))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_is_left_out_and_named(bad: float) -> None:
    model, (x, y) = net(), data(5)
    samples = samples_of(model, x, y)
    x[1], y[3] = bad, bad
    clipper = per_sample(model, "norm:2.0", "mean")
    result = step(clipper, model, x, y)
    assert result.left_out == (1, 3)
    assert result.sample_coef[[1, 3]].tolist() == [0.0, 0.0]
    clipped = [oracle.rescaled(samples[i], 2.0) for i in (0, 2, 4)]
    assert_close(model, {n: g / 5 for n, g in oracle.added(clipped).items()})
    assert 0 < float(result.removed) < 1
    # The first step could not be compared with its sum; the next one is.
    x, y = data(5)
    next(model.parameters()).grad = torch.ones(6, 3)
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"parameter='0\.weight'.* clear \.grad before"):
        clipper.clip_()


def test_raise_names_the_samples_and_changes_nothing() -> None:
    model, (x, y) = net(), data(4)
    x[2] = math.nan
    clipper = per_sample(model, online_quantile(), "sum", nonfinite="raise")
    backward(clipper, model, x, y)
    before, state = grads(model), clipper.state_dict()
    with pytest.raises(NonFiniteError, match=r"samples \[2\] hold inf or NaN"):
        clipper.clip_()
    after = grads(model)
    assert all(
        torch.equal(
            after[n],
            before[n],
        )
        or before[n].isnan().any()
        for n in before
    )
    assert clipper.steps == 0
    assert torch.equal(clipper.state_dict()["limits"][0], state["limits"][0])
    assert len(step(clipper, model, *data(4)).sample_norms) == 4


def test_a_step_that_fails_leaves_no_micro_batch_for_the_next() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum", nonfinite="raise")
    backward(clipper, model, x, y)
    clipper.accumulate()
    backward(clipper, model, x * math.nan, y)
    with pytest.raises(NonFiniteError):
        clipper.clip_()
    assert len(step(clipper, model, x, y).sample_norms) == 4
    assert clipper.steps == 1


def test_grad_stays_the_tensor_that_it_was() -> None:
    model, (x, y) = net(), data(4)
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    offset = 0
    for p in model.parameters():
        p.grad = flat[offset : offset + p.numel()].view_as(p)
        offset += p.numel()
    clipper = per_sample(model, "norm:1.0", "sum")
    backward(clipper, model, x, y)
    before = flat.clone()
    clipper.clip_()
    assert torch.equal(flat, torch.cat([g.flatten() for g in grads(model).values()]))
    assert not torch.equal(flat, before)


# ---- what is remembered ----------------------------------------------------------------------


def test_a_resumed_run_goes_on_as_the_uninterrupted_one(tmp_path: Any) -> None:
    model = net()
    clipper = per_sample(model, online_quantile(start=0.5), "mean")
    step(clipper, model, *data(5))
    torch.save(clipper.state_dict(), tmp_path / "state.pt")
    other = net()
    resumed = per_sample(other, online_quantile(start=0.5), "mean")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, two in ((clipper, model), (resumed, other)):
        step(one, two, *data(6, seed=3))
    assert resumed.steps == clipper.steps == 2
    assert all(torch.equal(grads(model)[n], grads(other)[n]) for n in grads(model))
    assert torch.equal(clipper.state_dict()["limits"][0], resumed.state_dict()["limits"][0])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("steps", -1, "steps=-1"),
        ("limits", [], "a list of 1 limits"),
        ("limits", [None], "of another policy"),
        ("limits", [torch.ones(2)], "of another policy"),
        ("limits", [torch.tensor([math.nan])], "> 0 and finite"),
        ("policy", "norm:1.0", "this clipper's policy"),
        ("names", ["0.weight"], "others than this clipper's"),
    ],
)
def test_a_state_that_could_not_be_is_refused_whole(key: str, value: Any, says: str) -> None:
    clipper = per_sample(net(), online_quantile())
    state = clipper.state_dict()
    with pytest.raises(PolicyError, match=says):
        clipper.load_state_dict({**state, "steps": 3, key: value})
    assert clipper.steps == 0


# ---- hooks -----------------------------------------------------------------------------------


def test_the_hooks_go() -> None:
    model, (x, y) = net(), data(3)
    with per_sample(model, "norm:1.0") as clipper:
        assert any(part._forward_hooks for part in model.modules())
        step(clipper, model, x, y)
    assert not any(part._forward_hooks for part in model.modules())
    model.zero_grad()
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"run the model forward and loss\.backward\(\) first"):
        clipper.clip_()


def test_a_pass_without_gradients_is_not_kept() -> None:
    model, (x, y) = net(), data(3)
    clipper = per_sample(model, "norm:1.0", "sum")
    with torch.no_grad():
        model(x)
    model(x)  # Nobody differentiates this.
    assert not clipper._kept.uses
    assert len(step(clipper, model, x, y).sample_norms) == 3
    assert not clipper._kept.uses


def test_a_paused_hook_keeps_nothing() -> None:
    model, (x, y) = net(), data(3)
    clipper = per_sample(model, "norm:1.0", "sum")
    clipper._kept.paused = True
    backward(clipper, model, x, y)
    assert not clipper._kept.uses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_has_the_eps_of_its_own_dtype(dtype: torch.dtype) -> None:
    model = nn.RMSNorm(4, dtype=dtype)
    x = torch.rand(3, 4, dtype=dtype) * 1e-4  # Of squares that are small beside eps.
    model(x).sum().backward()
    assert model.weight.grad is not None
    expected = model.weight.grad.clone()
    model.zero_grad()
    clipper = per_sample(model, "norm:1e6", "sum")
    model(x).sum().backward()
    assert int(clipper.clip_().clipped) == 0
    torch.testing.assert_close(model.weight.grad, expected)


def test_hooks_of_others_change_nothing() -> None:
    model, (x, y) = net(), data(4)

    def tripled(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out * 3.0

    model[0].register_forward_hook(tripled)
    model[0].register_forward_pre_hook(lambda _m, args: (args[0] * 2.0,))
    model[3].register_full_backward_hook(lambda _m, grads, _o: (grads[0] * 0.5,))
    clipper = per_sample(model, "norm:1e6", "sum")
    backward(clipper, model, x, y)
    expected = {name: grad.double() for name, grad in grads(model).items()}
    assert int(clipper.clip_().clipped) == 0
    assert_close(model, expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_layer_with_other_parameters_than_its_kind_is_not_taken_for_it() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(3, 4), nn.utils.weight_norm(nn.Linear(4, 2))), data(4)
    clipper = per_sample(model, "norm:1e6", "sum")
    backward(clipper, model, x, y)
    expected = {name: grad.double() for name, grad in grads(model).items()}
    assert clipper.clip_().ran == {"ghost": ("0",), "vmap": ("1",)}
    assert_close(model, expected)


def test_a_checkpointed_part_counts_once() -> None:
    model, (x, y) = net(), data(4)
    samples = samples_of(model, x, y)
    clipper = per_sample(model, "norm:1.0", "sum")
    middle = checkpoint(model[:3], x, use_reentrant=False)
    ((model[3](middle) - y) ** 2).sum().backward()
    clipper.clip_()
    assert_close(model, oracle.added([oracle.rescaled(g, 1.0) for g in samples]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("times", [3, 4])
def test_a_mask_over_time_is_for_all_samples(times: int) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mask = nn.Transformer.generate_square_subsequent_mask(times)
    padding = torch.zeros(4, times)
    padding[1, -1] = -math.inf
    x, index = torch.randn(4, times, 4), torch.arange(4)

    def loss(m: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        out = m(x, mask=mask.to(x), src_key_padding_mask=padding[index].to(x))
        return ((out - 1) ** 2).flatten(1).sum(1)

    samples = oracle.sample_gradients(model, loss, x, index)
    limit = sorted(map(oracle.norm, samples))[1]
    clipper = per_sample(model, by_norm(limit), "sum")
    loss(model, x, index).sum().backward()
    result = clipper.clip_()
    assert result.ran.keys() == {"ghost"}
    total = oracle.added([oracle.rescaled(g, limit) for g in samples])
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad.double(), total[name], rtol=1e-4, atol=1e-5 * limit)


def test_autocast_leaves_the_limit_in_force() -> None:
    model, (x, y) = net(), data(6)
    clipper = per_sample(model, "norm:1.0", "sum")
    with torch.autocast("cpu", torch.bfloat16):
        losses = loss_of(model, x, y)
    losses.sum().backward()
    result = clipper.clip_()
    samples = samples_of(model, x, y)
    norms = torch.tensor([oracle.norm(g) for g in samples], dtype=torch.float64)
    torch.testing.assert_close(result.sample_norms, norms, rtol=0.05, atol=0.0)
    assert bool((result.sample_norms * result.sample_coef <= 1.0).all())
