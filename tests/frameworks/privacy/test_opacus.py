"""Against Opacus: a step of its privacy engine without noise, in each way in which it clips."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from opacus.optimizers import DPOptimizerFastGradientClipping

from gradclip import by_norm, online_quantile
from gradclip.torch import per_sample
from sample_oracle import added, norm, rescaled, sample_gradients

from .models import CASES, UNTIED, losses, made
from .opacus_steps import EPS, Clipping, Private, difference, limits_of, ours

# Opacus warns of torch's own hooks, and of its random numbers.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = [(name, case, "hooks", c) for name, case in CASES.items() for c in get_args(Clipping)]
STEPS += [(name, case, "ghost", "flat") for name, case in CASES.items() if name != "transformer"]
STEPS += [("untied transformer", UNTIED, "ghost", "flat")]
EXACT = 1e-12
"""What may remain in float64 of a difference, relative to the largest value."""


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join((step[0], *step[2:])))
def test_a_step_is_that_of_opacus(step: Any) -> None:
    _, case, mode, clipping = step
    found = difference(case, clipping, mode)
    assert found.rest < EXACT
    # Some samples were clipped, or the 1e-6 of Opacus would not be seen.
    assert EXACT < found.raw < 5e-6


def test_opacus_does_not_take_tied_weights_without_writing_them_out() -> None:
    with pytest.raises(NotImplementedError, match="Parameter tying is not supported"):
        difference(CASES["transformer"], "flat", "ghost")


def test_tied_weights_that_opacus_refuses_are_those_of_autograd() -> None:
    case = CASES["transformer"]
    x, y = case.batch()
    samples = sample_gradients(made(case.make), lambda net, x, y: losses(net(x), y), x, y)
    (limit,) = limits_of(samples, "flat").values()
    expected = added([rescaled(grads, limit) for grads in samples], [1 / len(x)] * len(x))
    found = ours(case.make, by_norm(limit), x, y)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_a_limit_that_moves_is_that_of_opacus(name: str) -> None:
    case, start, steps = CASES[name], 1.0, 6
    options: dict[str, Any] = {
        "target_unclipped_quantile": 0.7,
        "clipbound_learning_rate": 0.5,
        "max_clipbound": 1e9,
        "min_clipbound": 1e-9,
        # Opacus wants noise on the count; this much is not seen.
        "unclipped_num_std": 1e-12,
    }
    theirs = Private(case.make, {"*": start}, "adaptive", **options)
    net = made(case.make)
    clipper = per_sample(net, online_quantile(q=0.7, rate=0.5, start=start), "mean")
    limits = []
    for seed in range(steps):
        x, y = case.batch(seed)
        (limit,) = clipper.state_dict()["limits"]
        limits.append(float(limit))
        assert limits[-1] == pytest.approx(float(theirs.optimizer.max_grad_norm), rel=1e-6)
        found = theirs.step(x, y)
        net.zero_grad()
        losses(net(x), y).mean().backward()
        least = clipper.clip_().sample_norms.min()
        largest = max(float(g.abs().max()) for g in found.values())
        for parameter, p in net.named_parameters():
            assert p.grad is not None
            # The limit of Opacus is float32 from the second step on.
            far = (p.grad - found[parameter]).abs().max() / largest
            assert float(far) < EPS / float(least) + 1e-6
    assert len(set(limits)) == steps, "the limit never stood still"


def test_the_limits_clip_half_of_the_samples() -> None:
    case = CASES["MLP"]
    x, y = case.batch()
    samples = sample_gradients(made(case.make), lambda net, x, y: losses(net(x), y), x, y)
    (limit,) = limits_of(samples, "flat").values()
    assert sum(norm(grads) > limit for grads in samples) == len(samples) // 2


def test_the_optimizer_of_opacus_takes_the_clipped_sum() -> None:
    case = CASES["CNN"]
    x, y = case.batch()
    net = made(case.make)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(net.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=2 * len(x),
    )
    with per_sample(net, "norm:1.0", "sum") as clipper:
        for _ in range(2):  # The second step starts from what the first one left.
            optimizer.zero_grad()
            losses(net(x), y).sum().backward()
            clipper.clip_()
            optimizer.step()
    for name, grad in ours(case.make, "norm:1.0", x, y).items():
        found = net.get_parameter(name).grad
        torch.testing.assert_close(found, grad / 2, rtol=EXACT, atol=1e-15)
