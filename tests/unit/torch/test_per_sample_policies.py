"""Which policies clip single samples, and what they do to each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sample_oracle as oracle
from gradclip import (
    Measure,
    Policy,
    auto_s,
    band,
    by_name,
    by_norm,
    by_value,
    floor,
    normalise,
    online_quantile,
    psac,
    smooth,
    with_feedback,
    zclip,
)
from gradclip.errors import PolicyError
from gradclip.parts import Ramp, Rescale
from gradclip.torch import per_sample

from .sample_training import assert_close, backward, data, net, samples_of, step


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
    "auto-s": (auto_s(1.0), lambda n: 1 / (n + AUTO)),
    "psac": (psac(1.5, r=0.5), lambda n: 1.5 / (n + 0.5 / (n + 0.5))),
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
        ("spectral:1.0", "give the scope global, tensor, unit, element"),
        ("block_rms:1.0", "give order=2"),
        (
            Policy(Measure("unit"), online_quantile().threshold, Rescale()),
            "scope='unit', the threshold is one of Fixed, Moving, RatioToWeight",
        ),
        (by_norm(1.0, order=math.inf), "give order=2"),
        (by_norm(1.0) | by_value(1.0), "give one policy"),
        (with_feedback(by_norm(1.0)), "give one policy"),
        (by_name({"0.*": "clippy", "*": "norm:1.0"}), "give the scope global"),
        (zclip(), "the threshold is one of Fixed, Moving, OnlineQuantile"),
        ("skip_above:1.0", "the response is one of Rescale"),
        ("norm:-1", "max_norm"),
    ],
    ids=str,
)
def test_a_policy_that_is_not_for_samples_is_refused(policy: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(net(), policy)
