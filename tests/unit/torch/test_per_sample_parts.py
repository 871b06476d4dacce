"""Per-sample clipping of values and units, and of rows that somebody else wrote out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import sample_oracle as oracle
from gradclip import agc, by_name, by_norm, by_value, per_layer, tanh
from gradclip.errors import NonFiniteError, PolicyError
from gradclip.torch import PerSample, per_sample

from .sample_training import data, loss_of, net

SMALL = 0.05


def ghost(model: nn.Module, policy: Any, x: Tensor, y: Tensor, **options: Any) -> Any:
    clipper = per_sample(model, policy, "sum", **options)
    model.zero_grad()
    loss_of(model, x, y).sum().backward()
    return clipper.clip_()


def by_unit(sample: oracle.Grads, limits: dict[str, Tensor] | float) -> oracle.Grads:
    """Return a sample's gradient with each row brought to its limit."""
    done = {}
    for name, g in sample.items():
        rows = g.reshape(len(g), -1) if g.dim() > 1 else g.reshape(1, -1)
        most = limits[name] if isinstance(limits, dict) else limits
        factor = (most / rows.norm(dim=1)).clamp(max=1.0)
        done[name] = (rows * factor[:, None]).reshape(g.shape)
    return done


def assert_close(model: nn.Module, expected: oracle.Grads) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        want = expected[name]
        torch.testing.assert_close(parameter.grad.double(), want, rtol=1e-5, atol=1e-7, msg=name)


# ---- values and units ------------------------------------------------------------------------


def test_each_value_of_each_sample_is_clamped() -> None:
    model, (x, y) = net(), data(5)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    parts = [{n: g.clamp(-SMALL, SMALL) for n, g in sample.items()} for sample in samples]
    result = ghost(model, by_value(SMALL), x, y)
    assert_close(model, oracle.added(parts))
    coefs = [oracle.norm(p) / oracle.norm(s) for p, s in zip(parts, samples, strict=True)]
    torch.testing.assert_close(result.sample_coef.float(), torch.tensor(coefs))
    values = sum(p.numel() for p in model.parameters())
    assert float(result.sensitivity) == pytest.approx(SMALL * math.sqrt(values), rel=1e-14)
    assert int(result.clipped) == 5
    assert set(result.ran["rows"]) == {n for n, _ in model.named_parameters()}
    assert result.ran["ghost"] == ("0", "2", "3"), "their norms are from formulas still"


@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        (by_value(-0.01, 0.03), 0.03 * math.sqrt(3)),
        (by_value([1.0, 2.0, 2.0]), 3.0),
        (by_value(max=1.0), math.inf),
        (by_value(min=-1.0), math.inf),
        (tanh(0.5), 0.5 * math.sqrt(3)),
        (by_norm(2.0, scope="unit"), 2.0),
        (by_norm(2.0, scope="unit", axis=1), 2.0 * math.sqrt(3)),
        (agc(0.1), 0.1 * math.sqrt(14.0)),
        (agc(0.1, eps=1e3), 0.1 * 1e3),
        (per_layer(2.0), 2.0),
    ],
    ids=str,
)
def test_the_sensitivity_of_each_kind_of_policy(policy: Any, bound: float) -> None:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    for reduction, divisor in (("sum", 1), ("mean", 2 / 2)):
        clipper = per_sample(model, policy, reduction)  # type: ignore[arg-type]
        model.zero_grad()
        out = model(torch.randn(2, 3))
        (out.sum() if reduction == "sum" else out.mean()).backward()
        assert float(clipper.clip_().sensitivity) == pytest.approx(bound / divisor, rel=1e-12)
        clipper.detach()


def test_one_policy_by_value_beside_one_by_norm() -> None:
    model, (x, y) = net(), data(4)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    policy = by_name({"0.*": by_value(SMALL), "2.*": None, "*": by_norm(0.3)})
    parts = []
    for sample in samples:
        first = {n: g.clamp(-SMALL, SMALL) for n, g in sample.items() if n.startswith("0.")}
        free = {n: g for n, g in sample.items() if n.startswith("2.")}
        last = {n: g for n, g in sample.items() if n.startswith("3.")}
        parts.append(first | free | oracle.rescaled(last, 0.3))
    result = ghost(model, policy, x, y)
    assert_close(model, oracle.added(parts))
    assert result.ran["rows"] == ("0.weight", "0.bias")
    assert math.isinf(float(result.sensitivity))


def test_each_unit_of_each_sample_is_clipped_by_norm_or_by_its_weights() -> None:
    model, (x, y) = net(), data(4)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    ghost(model, by_norm(SMALL, scope="unit"), x, y)
    assert_close(model, oracle.added([by_unit(sample, SMALL) for sample in samples]))
    limits = {}
    for name, p in model.named_parameters():
        rows = p.detach().double()
        rows = rows if rows.dim() > 1 else rows.reshape(1, -1)
        limits[name] = 0.05 * rows.norm(dim=1).clamp_min(1e-3)
    result = ghost(model, agc(0.05), x, y)
    assert_close(model, oracle.added([by_unit(sample, limits) for sample in samples]))
    whole = math.sqrt(sum(float((limit**2).sum()) for limit in limits.values()))
    assert float(result.sensitivity) == pytest.approx(whole, rel=1e-12)


def test_weights_and_nan_hold_for_clamped_samples_too() -> None:
    model, (x, y) = net(), data(4)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    parts = [{n: g.clamp(-SMALL, SMALL) for n, g in s.items()} for s in samples]
    x[2] = math.nan
    clipper = per_sample(model, by_value(SMALL), "sum")
    loss_of(model, x, y).sum().backward()
    result = clipper.clip_(weights=torch.tensor([1.0, 0.5, 1.0, 0.0]))
    assert_close(model, oracle.added([parts[0], parts[1]], [1.0, 0.5]))
    assert result.left_out == (2,)


def test_a_sample_within_its_limits_keeps_its_coefficient_of_one() -> None:
    model, (x, y) = net(), data(3)
    for policy in (by_value(1e9), by_norm(1e9, scope="unit")):
        result = ghost(model, policy, x, y)
        assert result.sample_coef.tolist() == [1.0] * 3
        assert int(result.clipped) == 0 == float(result.removed)


def test_a_bound_that_does_not_fit_is_refused() -> None:
    model, (x, y) = net(), data(3)
    with pytest.raises(PolicyError, match=r"0.weight has the shape \(6, 3\)"):
        ghost(model, by_value([1.0, 2.0]), x, y)


# ---- rows that somebody else wrote out -------------------------------------------------------


def put_rows(model: nn.Module, x: Tensor, y: Tensor) -> None:
    params = {n: p.detach() for n, p in model.named_parameters()}

    def alone(params: Any, one: Tensor, other: Tensor) -> Tensor:
        out = functional_call(model, params, (one[None],))
        return ((out - other[None]) ** 2).sum()

    found = vmap(grad(alone), (None, 0, 0))(params, x, y)
    for name, parameter in model.named_parameters():
        parameter.grad_sample = found[name]  # type: ignore[attr-defined]


def rows_on(parameter: Tensor) -> Any:
    return getattr(parameter, "grad_sample", None)


def of_rows(model: nn.Module, policy: Any = "norm:1.0", reduction: Any = "sum") -> PerSample:
    return per_sample(model, policy, reduction, rows="grad_sample")


@pytest.mark.parametrize("policy", ["norm:1.0", by_value(SMALL), agc(0.05), per_layer(1.0)])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_rows_give_what_hooks_give(policy: Any, reduction: Any) -> None:
    model, (x, y) = net(), data(5)
    hooked = per_sample(model, policy, reduction)
    losses = loss_of(model, x, y)
    (losses.sum() if reduction == "sum" else losses.mean()).backward()
    want = hooked.clip_()
    expected = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    hooked.detach()
    model.zero_grad()
    clipper = of_rows(model, policy, reduction)
    put_rows(model, x, y)
    result = clipper.clip_()
    assert_close(model, expected)
    torch.testing.assert_close(result.sample_norms, want.sample_norms, rtol=1e-5, atol=0)
    assert float(result.sensitivity) == float(want.sensitivity)
    assert set(result.ran) == {"rows"}
    left = [rows_on(p) for p in model.parameters()]
    assert left == [None] * len(left), "clip_ takes the rows"


def test_a_list_of_rows_is_of_several_backward_passes() -> None:
    model, (x, y) = net(), data(5)
    clipper = of_rows(model)
    put_rows(model, x, y)
    whole = clipper.clip_()
    wanted = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    for parts in ([x[:2], x[2:]], [x[:2], x[2:], x[:0]]):
        first: dict[str, list[Tensor]] = {n: [] for n, _ in model.named_parameters()}
        for part, other in zip(parts, y.split([2, 3, 0]), strict=False):
            put_rows(model, part, other)
            for name, p in model.named_parameters():
                first[name].append(rows_on(p))
        for name, p in model.named_parameters():
            p.grad_sample = first[name]  # type: ignore[attr-defined]
        result = clipper.clip_()
        assert_close(model, wanted)
        torch.testing.assert_close(result.sample_norms, whole.sample_norms)


def test_rows_are_accumulated_and_weighted() -> None:
    model, (x, y) = net(), data(5)
    clipper = of_rows(model)
    put_rows(model, x[1:], y[1:])
    clipper.clip_()
    wanted = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    put_rows(model, x[:3], y[:3])
    clipper.accumulate(torch.tensor([0.0, 1.0, 1.0]))
    put_rows(model, x[3:], y[3:])
    assert clipper.clip_().sample_norms.shape == (5,)
    assert_close(model, wanted)


def test_a_parameter_without_rows_takes_no_part() -> None:
    model, (x, y) = net(), data(3)
    clipper = of_rows(model, by_norm(1.0, scope="tensor"))
    put_rows(model, x, y)
    model[0].weight.grad_sample = None  # type: ignore[attr-defined]
    result = clipper.clip_()
    assert model[0].weight.grad is None
    # Which parameters take part may depend on the samples: the limits of all six count.
    assert float(result.sensitivity) == pytest.approx(math.sqrt(6))


def test_a_bad_sample_among_rows() -> None:
    model, (x, y) = net(), data(3)
    put_rows(model, x, y)
    model[0].weight.grad_sample[1, 0, 0] = math.inf  # type: ignore[index, attr-defined]
    strict = per_sample(model, "norm:1.0", "sum", rows="grad_sample", nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"\[1\]"):
        strict.clip_()
    assert of_rows(model).clip_().left_out == (1,)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _: None, "no parameter has it"),
        (lambda _: torch.ones(3, 5), r"give the shape \(batch, \*\("),
        (lambda p: torch.ones(2, *p.shape, dtype=torch.int64), "a tensor of real floats"),
        (lambda _: "rows", "a tensor of real floats"),
        (lambda p: torch.ones(p.numel() % 5 + 1, *p.shape), "rows of the same samples"),
    ],
    ids=["none", "shape", "whole numbers", "text", "batches"],
)
def test_rows_that_do_not_fit_are_refused(spoil: Any, says: str) -> None:
    model = net()
    clipper = of_rows(model)
    for p in model.parameters():
        p.grad_sample = spoil(p)  # type: ignore[attr-defined]
    before = list(map(rows_on, model.parameters()))
    with pytest.raises(PolicyError, match=says):
        clipper.clip_()
    assert all(p.grad is None for p in model.parameters())
    assert all(rows_on(p) is b for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["grad", "", "no name", 3])
def test_the_name_of_the_attribute_is_usable(name: Any) -> None:
    with pytest.raises(PolicyError, match="rows="):
        per_sample(net(), "norm:1.0", rows=name)
