"""A limit that K tensors share: together they are within it, in fractions, and none gets less."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradclip.numpy
import gradclip.torch
from gradclip import by_name, by_norm, parse, per_layer
from gradclip.method.plan import Stage, plan
from gradclip.parts import Context, Ramp, Share


@given(whole=st.floats(0, 1e300), parts=st.integers(1, 5000))
def test_the_shares_together_are_within_the_whole(whole: float, parts: int) -> None:
    limits, _ = Share(whole).update({}, np.ones(parts), Context(), np)
    assert parts * Fraction(limits.high) ** 2 <= Fraction(whole) ** 2
    more = math.nextafter(limits.high, math.inf)
    assert parts * Fraction(more) ** 2 > Fraction(whole) ** 2, "a larger share was left"


@pytest.mark.parametrize("limit", [torch.tensor(3.0, dtype=torch.float64), Ramp(3.0, 3.0, 2)])
@pytest.mark.parametrize("parts", [1, 3, 7, 10])
def test_a_moving_whole_is_shared_as_a_number_is(limit: object, parts: int) -> None:
    high = Share(limit).update({}, torch.ones(parts), Context(), torch)[0].high  # type: ignore[arg-type]
    assert parts * Fraction(float(high)) ** 2 <= 9
    assert float(high) == pytest.approx(3 / math.sqrt(parts), rel=1e-15)


def test_a_plan_counts_the_parameters_of_each_rule() -> None:
    policy = by_name({"a.*": per_layer(1.0), "*": per_layer(2.0)})
    (layer,) = plan(policy, ["a.0", "b", "a.1", "c", "d"])
    stages = [stage for stage in layer if isinstance(stage, Stage)]
    assert [stage.policy.threshold for stage in stages] == [Share(1.0, 2), Share(2.0, 3)]
    assert parse(str(policy)) == policy


def test_a_parameter_without_a_gradient_has_its_share() -> None:
    grads = {"a": np.asarray([3.0, 4.0]), "b": None, "c": None, "d": np.asarray([0.1])}
    out, _, _ = gradclip.numpy.clip(grads, per_layer(2.0))
    np.testing.assert_allclose(out["a"], [0.6, 0.8])
    assert out["d"][0] == 0.1


def test_in_a_backward_each_tensor_has_its_share_too() -> None:
    layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(4)]
    model = torch.nn.Sequential(*layers)
    x = torch.full((1, 2), 1e4)
    model(x).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    out, _, _ = gradclip.numpy.clip([g.numpy() for g in wanted], per_layer(2.0))
    model.zero_grad()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.0) for layer in layers]
    found: dict[int, torch.Tensor] = {}
    for i, (layer, optimizer) in enumerate(zip(layers, optimizers, strict=True)):

        def step(p: torch.Tensor, i: int = i, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            assert p.grad is not None
            found[i] = p.grad.clone()
            optimizer.zero_grad()

        layer.weight.register_post_accumulate_grad_hook(step)
    gradclip.torch.attach_in_backward(optimizers, per_layer(2.0), model=model)
    model(x).sum().backward()
    for i, want in enumerate(out):
        np.testing.assert_allclose(found[i].numpy(), want, rtol=1e-6)
    assert max(float(g.norm()) for g in found.values()) == pytest.approx(1.0)


def test_one_tensor_has_all_of_it() -> None:
    assert gradclip.numpy.clip([np.asarray([3.0, 4.0])], per_layer(1.0))[0][0] == pytest.approx(
        gradclip.numpy.clip([np.asarray([3.0, 4.0])], by_norm(1.0))[0][0]
    )
