"""Rules by name keep to themselves; skip rules keep the weights, and end a run that only skips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradclip.numpy
from gradclip import (
    GradclipWarning,
    NonFiniteError,
    PolicyError,
    by_norm,
    skip_above,
    skip_outliers,
    zclip,
)
from gradclip.torch import Clipper, attach
from stream import stream, weights

RULES = {"embed*": by_norm(0.5), "*.bias": None, "*": zclip(warmup=5)}
NAMES = ("embed.weight", "head.bias", "head.weight")


def test_each_group_has_its_own_norm_and_memory() -> None:
    state, alone = None, {"embed.weight": None, "head.weight": None}
    for grads, _ in stream():
        named = dict(zip(NAMES, grads, strict=True))
        if not all(np.isfinite(g).all() for g in grads):
            continue
        together, state, _ = gradclip.numpy.clip(named, RULES, state)
        np.testing.assert_array_equal(together["head.bias"], named["head.bias"])
        for name, policy in (("embed.weight", RULES["embed*"]), ("head.weight", RULES["*"])):
            single, alone[name], _ = gradclip.numpy.clip([named[name]], policy, alone[name])
            np.testing.assert_array_equal(together[name], single[0])


def test_torch_groups_equal_separate_clippers() -> None:
    params = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in zip(NAMES, weights(), strict=True)}
    clipper = Clipper(params.items(), RULES)
    twin = {n: torch.nn.Parameter(p.detach().clone()) for n, p in params.items()}
    apart = [
        Clipper([twin["embed.weight"]], RULES["embed*"]),
        Clipper([twin["head.weight"]], RULES["*"]),
    ]
    for grads, _ in stream():
        if not all(np.isfinite(g).all() for g in grads):
            continue
        for name, grad in zip(NAMES, grads, strict=True):
            params[name].grad, twin[name].grad = torch.tensor(grad), torch.tensor(grad)
        clipper.clip_()
        for single in apart:
            single.clip_()
        for name in NAMES:
            assert torch.equal(params[name].grad, twin[name].grad)  # type: ignore[arg-type]


def test_a_name_without_a_rule_is_an_error() -> None:
    with pytest.raises(PolicyError, match=r"head\.weight.*'\*'"):
        gradclip.numpy.clip({"head.weight": np.ones(2)}, {"embed*": by_norm(1.0)})


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "propagate", "raise"])
def test_a_skipped_step_leaves_weights_and_optimizer(nonfinite: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    clipper = attach(optimizer, skip_above(10.0), nonfinite=nonfinite)  # type: ignore[arg-type]
    weight.grad = torch.ones(3)
    optimizer.step()
    before, steps = weight.detach().clone(), float(optimizer.state[weight]["step"])
    weight.grad = torch.full((3,), 100.0)
    optimizer.step()
    assert torch.equal(weight.detach(), before)
    assert float(optimizer.state[weight]["step"]) == steps
    assert torch.equal(weight.grad, torch.full((3,), 100.0))
    assert (clipper.skipped, clipper.steps) == (1, 2)


def test_too_many_skips_end_the_run_and_name_the_last_norms() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    attach(optimizer, skip_above(1.0), max_skips=2)
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    optimizer.step()
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .*last norms were 5, 5, 5"):
        optimizer.step()


def test_a_loss_that_is_an_outlier_skips() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    clipper = Clipper([weight], skip_outliers(3, window=8, minimum=4, of="loss"))
    weight.grad = torch.ones(2)
    losses = (1.0, 1.1, 0.9, 1.0, 1.05, 9.0, 1.0, -9.0)
    with pytest.warns(GradclipWarning, match="only if not result.skipped"):
        found = [bool(clipper.clip_(loss=loss).skipped) for loss in losses]
    assert found == [False] * 5 + [True, False, False]
    with pytest.raises(PolicyError, match="loss"):
        clipper.clip_()
