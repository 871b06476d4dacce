"""The cases in which Opacus and jax-privacy differ, as docs/divergences.md tells them."""

# pyright: reportMissingImports=false
from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax_privacy import clipped_grad
from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from opacus.validators.errors import UnsupportedModuleError
from torch import nn

import gradclip.jax
from gradclip.torch import per_sample

from .models import BATCH, CASES, losses, made
from .opacus_steps import Private, ours

# Opacus and jax-privacy warn of what they call.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_opacus_shrinks_a_sample_at_a_small_limit_eleven_times() -> None:
    limit = 1e-7
    mine, net = (nn.Linear(1, 1, bias=False).double() for _ in range(2))
    theirs = GradSampleModule(net, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=limit,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    x = torch.full((1, 1), limit, dtype=torch.float64)
    theirs(x).sum().backward()
    optimizer.step()
    with per_sample(mine, f"norm:{limit}", "sum") as clipper:
        mine(x).sum().backward()
        clipper.clip_()
    assert net.weight.grad is not None
    assert mine.weight.grad is not None
    assert float(net.weight.grad) == pytest.approx(limit / 11)
    assert float(mine.weight.grad) == pytest.approx(limit)


def test_a_sample_with_nan_reaches_all_of_opacus_and_none_of_ours() -> None:
    case = CASES["MLP"]
    x, y = case.batch()
    x[2] = float("nan")
    theirs = Private(case.make, {"*": 1.0}, "flat").step(x, y)
    assert all(bool(grad.isnan().all()) for grad in theirs.values())
    mine = ours(case.make, "norm:1.0", x, y)
    assert all(bool(grad.isfinite().all()) for grad in mine.values())


def test_jax_privacy_keeps_the_finite_part_of_a_sample_with_nan() -> None:
    def loss(w: jnp.ndarray, x: jnp.ndarray) -> jnp.ndarray:
        return jnp.dot(w, x)

    x = jnp.asarray([[0.3, jnp.nan], [0.1, 0.2]])
    theirs = clipped_grad(loss, l2_clip_norm=1.0, keep_batch_dim=False)(jnp.zeros(2), x)
    assert np.asarray(theirs) == pytest.approx([0.4, 0.2])
    mine, result = gradclip.jax.per_sample(loss, "norm:1.0", reduction="sum")(jnp.zeros(2), x)
    assert np.asarray(mine) == pytest.approx([0.1, 0.2])
    assert result.skipped.tolist() == [True, False]


def test_opacus_refuses_torchs_lstm() -> None:
    lstm = nn.LSTM(2, 2, batch_first=True)
    with pytest.raises(UnsupportedModuleError, match="DPLSTM"):
        PrivacyEngine().validate(module=lstm, optimizer=None, data_loader=None)
    clipper = per_sample(lstm, "norm:1.0", "sum")
    lstm(torch.ones(3, 4, 2))[0].sum().backward()
    assert clipper.clip_().ran == {"ghost": ("LSTM",)}


def test_opacus_divides_a_small_batch_by_the_expected_size() -> None:
    case = CASES["MLP"]
    x, y = (each[:2] for each in case.batch())
    theirs = Private(case.make, {"*": 100.0}, "flat").step(x, y)
    net = made(case.make)
    clipper = per_sample(net, "norm:100", "mean", expected_batch_size=BATCH)
    losses(net(x), y).mean().backward()
    clipper.clip_()
    mine = ours(case.make, "norm:100", x, y)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name])
        torch.testing.assert_close(mine[name], theirs[name] * BATCH / 2)
