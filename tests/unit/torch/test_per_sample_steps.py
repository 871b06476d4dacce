"""Per-sample clipping over steps: micro-batches, weights, NaN, memory; and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sample_oracle as oracle
from gradclip import (
    band,
    by_name,
    by_norm,
    by_value,
    floor,
    normalise,
    online_quantile,
    smooth,
    with_feedback,
    zclip,
)
from gradclip.errors import NonFiniteError, PolicyError
from gradclip.parts import Ramp
from gradclip.torch import PerSample, PerSampleResult, per_sample


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).flatten(1).sum(1)


def data(batch: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, generator=gen), torch.randn(batch, 2, generator=gen)


def backward(clipper: PerSample, model: nn.Module, x: Tensor, y: Tensor) -> None:
    losses = loss_of(model, x, y)
    (losses.mean() if clipper.reduction == "mean" else losses.sum()).backward()


def step(clipper: PerSample, model: nn.Module, x: Tensor, y: Tensor) -> PerSampleResult:
    model.zero_grad()
    backward(clipper, model, x, y)
    return clipper.clip_()


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(model: nn.Module, expected: oracle.Grads) -> None:
    found = grads(model)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name].double(), grad, rtol=1e-5, atol=1e-6, msg=name)


def samples_of(model: nn.Module, x: Tensor, y: Tensor) -> list[oracle.Grads]:
    return oracle.sample_gradients(model, loss_of, x, y)


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


# ---- policies --------------------------------------------------------------------------------


def test_the_online_quantile_is_that_of_andrew() -> None:
    model = net()
    clipper = per_sample(model, online_quantile(q=0.7, rate=0.3, start=0.5), "sum")
    limit = 0.5
    for seed in range(6):
        x, y = data(7, seed)
        norms = [oracle.norm(g) for g in samples_of(model, x, y)]
        result = step(clipper, model, x, y)
        assert float(result.sensitivity) == pytest.approx(limit, rel=1e-12)
        torch.testing.assert_close(
            result.sample_coef.float(), torch.tensor([min(1.0, limit / n) for n in norms])
        )
        share = sum(n <= limit for n in norms) / 7
        limit *= math.exp(-0.3 * (share - 0.7))
    assert limit != 0.5


def test_micro_batches_move_the_limit_once() -> None:
    one, two = net(), net()
    whole, parts = (per_sample(m, online_quantile(start=0.5), "sum") for m in (one, two))
    x, y = data(8)
    step(whole, one, x, y)
    for low, high in ((0, 1), (1, 8)):
        backward(parts, two, x[low:high], y[low:high])
        parts.accumulate()
    parts.clip_()
    limits = [each.state_dict()["limits"][0] for each in (whole, parts)]
    torch.testing.assert_close(limits[0], limits[1], rtol=1e-14, atol=0.0)
    assert float(limits[0]) != 0.5


def test_a_sample_that_is_left_out_teaches_the_limit_nothing() -> None:
    one, two = net(), net()
    x, y = data(6)
    kept = torch.tensor([0, 1, 2, 3])
    first, second = (per_sample(m, online_quantile(start=0.5), "sum") for m in (one, two))
    step(first, one, x[kept], y[kept])
    x[4] = math.nan
    backward(second, two, x, y)
    second.clip_(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(first.state_dict()["limits"][0], second.state_dict()["limits"][0])


def test_a_list_of_limits_goes_by_name() -> None:
    model, (x, y) = net(), data(5)
    samples = samples_of(model, x, y)
    policy = by_name({"0.*": by_norm(0.5), "2.*": None, "*": by_norm(1.5)})
    result = step(clipper := per_sample(model, policy, "sum"), model, x, y)
    parts = []
    for sample in samples:
        first = {n: g for n, g in sample.items() if n.startswith("0.")}
        free = {n: g for n, g in sample.items() if n.startswith("2.")}
        last = {n: g for n, g in sample.items() if n.startswith("3.")}
        parts.append(oracle.rescaled(first, 0.5) | free | oracle.rescaled(last, 1.5))
    assert_close(model, oracle.added(parts))
    coefs = [oracle.norm(p) / oracle.norm(s) for p, s in zip(parts, samples, strict=True)]
    torch.testing.assert_close(result.sample_coef.float(), torch.tensor(coefs))
    assert math.isinf(float(result.sensitivity)), "nothing bounds the part without a rule"
    assert "reduction='sum'" in repr(clipper)


AUTO = 0.01
RULES: dict[str, tuple[Any, Callable[[float], float]]] = {
    "auto-s": (normalise(1.0, eps=AUTO), lambda n: 1 / (n + AUTO)),
    "normalise": (normalise(2.0, eps=0.0), lambda n: 2 / n),
    "smooth": (smooth(2.0), lambda n: 1 / math.sqrt(1 + n * n / 4)),
    "band": (band(3.0, 4.0), lambda n: min(max(n, 3.0), 4.0) / n),
    "ramp": (by_norm(Ramp(2.0, 1.0, 10)), lambda n: min(1.0, 2 / n)),
}


@pytest.mark.parametrize("name", RULES)
def test_other_rules_for_one_gradient_hold_for_each_sample(name: str) -> None:
    policy, factor = RULES[name]
    model, (x, y) = net(), data(6)
    samples = samples_of(model, x, y)
    result = step(per_sample(model, policy, "sum"), model, x, y)
    coefs = [factor(oracle.norm(g)) for g in samples]
    assert_close(model, oracle.added(samples, coefs))
    torch.testing.assert_close(result.sample_coef.float(), torch.tensor(coefs))


def test_a_ramp_moves_with_the_steps() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, by_norm(Ramp(2.0, 1.0, 2)), "sum")
    limits = [float(step(clipper, model, x, y).sensitivity) for _ in range(4)]
    assert limits == [2.0, 1.5, 1.0, 1.0]


def test_a_floor_bounds_nothing() -> None:
    model, (x, y) = net(), data(4)
    assert math.isinf(float(step(per_sample(model, floor(0.1), "sum"), model, x, y).sensitivity))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("value:1.0", "scope='global' or 'tensor'"),
        (by_norm(1.0, scope="unit"), "scope='global' or 'tensor'"),
        (by_norm(1.0, order=math.inf), "give order=2"),
        (by_norm(1.0) | by_value(1.0), "give one policy"),
        (with_feedback(by_norm(1.0)), "give one policy"),
        (by_name({"0.*": "agc:0.01", "*": "norm:1.0"}), "scope='global' or 'tensor'"),
        (zclip(), "the threshold is one of Fixed, Moving, OnlineQuantile"),
        ("skip_above:1.0", "the response is one of Rescale"),
        ("norm:-1", "max_norm"),
    ],
    ids=str,
)
def test_a_policy_that_is_not_for_samples_is_refused(policy: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(net(), policy)


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


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (nn.BatchNorm1d(3), r"1 \(BatchNorm1d\).*use torch\.nn\.GroupNorm"),
        (nn.SyncBatchNorm(3), r"1 \(SyncBatchNorm\).*use torch\.nn\.GroupNorm"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "track_running_stats=False"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "scale_grad_by_freq=False"),
        (nn.Embedding(3, 2, sparse=True), "sparse=False"),
        (nn.DataParallel(nn.Linear(3, 3)), "give the module inside"),
        (nn.Linear(3, 3, dtype=torch.complex64), "the parameter is complex"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_mixes_samples_is_refused_before_the_first_step(part: nn.Module, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(nn.Sequential(nn.Linear(3, 3), part), "norm:1.0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": 3}, "give a torch.nn.Module"),
        ({"model": nn.ReLU()}, "no parameter of it is trained"),
        ({"reduction": "average"}, "choose one of 'mean', 'sum'"),
        ({"nonfinite": "skip"}, "choose one of 'leave-out', 'raise'"),
        ({"expected_batch_size": 0}, "give a number > 0"),
        ({"reduction": "sum", "expected_batch_size": 3}, "a sum is not divided"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(**{"model": net(), "policy": "norm:1.0", **arguments})


class Functional(nn.Module):
    """Uses the weights of its table where no module sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.table(x), self.table.weight)


class Positions(nn.Module):
    """Looks its positions up once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.places = nn.Embedding(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x) + self.places(torch.arange(x.shape[1]))


class Random(nn.Module):
    """Has a parameter beside dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x * self.scale, 0.5)


class Recurrent(nn.Module):
    """Returns the outputs of a recurrent layer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)[0]


class Picky(nn.Module):
    """Refuses a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("one is too few")
        return x * self.scale


WRONG: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "functional": (
        Functional,
        lambda: torch.randint(0, 5, (4, 6)),
        r"'table\.weight'.*only through its module",
    ),
    "positions": (
        Positions,
        lambda: torch.randint(0, 5, (4, 6)),
        r"places\.input.*=6 .*expand what all samples share",
    ),
    "random": (Random, lambda: torch.randn(4, 3), r"Random \(Random\).*without dropout"),
    "picky": (Picky, lambda: torch.randn(4, 3), r"Picky \(Picky\).*one is too few"),
    "random in turn": (
        lambda: Recurrent(nn.GRU(3, 2, 2, dropout=0.5, batch_first=True)),
        lambda: torch.randn(4, 5, 3),
        r"part \(GRU\).*draws random numbers",
    ),
    "time first": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten(0, 1), nn.Linear(3, 3)),
        lambda: torch.randn(4, 5, 3),
        r"2\.input.*=20 .*must be the batch, of 4 as for \'0\'",
    ),
    "no batch": (lambda: nn.Linear(3, 2), lambda: torch.randn(3), "has no batch axis"),
    "no batch, conv": (lambda: nn.Conv1d(3, 2, 1), lambda: torch.randn(3, 4), "has no batch axis"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_taken_apart_is_refused_in_the_first_step(name: str) -> None:
    make, inputs, says = WRONG[name]
    torch.manual_seed(0)
    model = make()
    clipper = per_sample(model, "norm:1.0", "sum")
    model(inputs()).pow(2).sum().backward()
    before = grads(model)
    with pytest.raises(PolicyError, match=says):
        clipper.clip_()
    assert all(torch.equal(grads(model)[n], before[n]) for n in before)
    assert clipper.steps == 0


def test_an_input_that_was_overwritten_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3))
    clipper = per_sample(model, "norm:1.0", "sum")
    model(x := torch.randn(4, 3)).sum().backward()
    x.mul_(2.0)
    with pytest.raises(PolicyError, match=r"module='0'.*was changed in place after the call"):
        clipper.clip_()


def test_a_copy_of_the_model_is_not_watched() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    loss_of(copy.deepcopy(model), x, y).sum().backward()
    assert not clipper._kept.uses
    assert len(step(clipper, model, x, y).sample_norms) == 4


def test_two_backward_passes_need_accumulate() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    for _ in range(2):
        backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"call accumulate\(\) after each"):
        clipper.clip_()
    # The refused batch is gone; the next step is whole.
    assert len(step(clipper, model, x, y).sample_norms) == 4


def test_a_parameter_that_is_trained_since_is_refused() -> None:
    model, (x, y) = net(), data(4)
    model[0].weight.requires_grad_(False)
    clipper = per_sample(model, "norm:1.0", "sum")
    model[0].weight.requires_grad_(True)
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"'0\.weight'.*make a new clipper"):
        clipper.clip_()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (torch.ones(3), r"weights\.shape=\(3,\).*give 4 numbers"),
        (torch.tensor([1.0, 1.0, 1.5, 1.0]), "from 0 to 1"),
        (torch.tensor([1.0, 1.0, math.nan, 1.0]), "from 0 to 1"),
    ],
    ids=["shape", "large", "nan"],
)
def test_weights_that_are_not_weights_are_refused(weights: Tensor, says: str) -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=says):
        clipper.clip_(weights)


def test_weights_come_with_their_batch() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    backward(clipper, model, x, y)
    clipper.accumulate()
    with pytest.raises(PolicyError, match=r"give them to accumulate\(\)"):
        clipper.clip_(torch.ones(4))
    clipper.clip_()


# ---- the check on two samples -----------------------------------------------------------------


LOSSES: dict[str, tuple[Any, Any, str | None]] = {
    "mean": (lambda losses, _out: losses.mean(), "mean", None),
    "sum": (lambda losses, _out: losses.sum(), "sum", None),
    "sum for mean": (lambda losses, _out: losses.sum(), "mean", "give reduction='sum'"),
    "mean for sum": (lambda losses, _out: losses.mean(), "sum", "give reduction='mean'"),
    "contrast": (lambda _, out: (out @ out.T).logsumexp(1).mean(), "mean", "mixes samples"),
    "not one": (lambda losses, _out: losses, "mean", r"loss\.shape=\(2,\).*give one number"),
    "zero": (lambda losses, _out: 0 * losses.sum(), "sum", "finite and not all zero"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_two_samples_tell_what_the_loss_is(name: str) -> None:
    reduced, reduction, says = LOSSES[name]
    model, (x, y) = net(), data(6)
    model.append(nn.Dropout(0.5))
    clipper = per_sample(model, "norm:1.0", reduction)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        return reduced(((out - y) ** 2).sum(1), out)

    if says is None:
        state = torch.get_rng_state()
        clipper.check(loss, x, y)
        assert torch.equal(torch.get_rng_state(), state), "nothing was drawn"
    else:
        with pytest.raises(PolicyError, match=says):
            clipper.check(loss, x, y)
    assert grads(model) == {}
    assert all(part.training for part in model.modules())
    assert not clipper._kept.uses
    assert not clipper._kept.paused


def test_two_samples_tell_that_the_model_mixes() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    model, (x, y) = nn.Sequential(Centred(), net()), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    with pytest.raises(PolicyError, match="mixes samples"):
        clipper.check(lambda x, y: loss_of(model, x, y).sum(), x, y)


def test_an_axis_that_happens_to_be_as_long_as_the_batch_is_found() -> None:
    model = Positions()
    clipper = per_sample(model, "norm:1.0", "sum")
    words = torch.randint(0, 5, (6, 6))
    model(words).pow(2).sum().backward()
    clipper.clip_()  # Here nothing tells that the 6 positions are not the 6 samples.
    with pytest.raises(PolicyError, match=r"places\.input.*=6 .*of 2 samples that check\(\) took"):
        clipper.check(lambda x: model(x).pow(2).sum(), words)
    assert not clipper._kept.uses


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), ()])
def test_the_check_needs_two_samples(sizes: tuple[int, ...]) -> None:
    clipper = per_sample(net(), "norm:1.0")
    with pytest.raises(PolicyError, match="two samples or more"):
        clipper.check(lambda *_: torch.zeros(()), *(torch.zeros(n, 3) for n in sizes))
