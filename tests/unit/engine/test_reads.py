"""How often a plan reads the gradients: what one read tells is not measured again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradclip import Policy, agc, by_name, by_norm
from gradclip.engine.backend import Measured
from gradclip.engine.memory import init
from gradclip.engine.run import in_stages
from gradclip.method.measure import Measure
from gradclip.method.plan import plan
from gradclip.method.policy import AnyPolicy
from gradclip.parts import Fixed, Rescale
from gradclip.torch.tensors.gradients import Gradients

NAMES = ["0", "1"]
UNITS = by_norm(1.0, scope="unit")


class Counted(Gradients):
    """Gradients that count how often the norms of all tensors are measured."""

    reads = 0

    def measure(self, order: float) -> Measured:
        """Count, and measure."""
        self.reads += 1
        return super().measure(order)


def clip(policy: AnyPolicy, value: float = 3.0) -> tuple[int, float]:
    """Return how often the tensors' norms are measured, and their norm before clipping."""
    tensors = [torch.full((2, 2), value, dtype=torch.float64) for _ in NAMES]
    grads = Counted(tensors, NAMES)
    layers = plan(policy, NAMES)
    weights = Gradients([torch.ones(2, 2, dtype=torch.float64) for _ in NAMES], NAMES)
    _, _, result = in_stages(
        layers, init(layers, grads), grads, nonfinite="skip", step=0, loss=None,
        weights=lambda: weights,
    )  # fmt: skip
    return grads.reads, float(result.total_norm)


@pytest.mark.parametrize("policy", [UNITS, agc(0.1), UNITS | by_norm(1.0, scope="tensor")])
def test_a_plan_that_begins_with_all_units_reads_them_alone(policy: AnyPolicy) -> None:
    assert clip(policy) == (0, pytest.approx(np.sqrt(8) * 3))


@pytest.mark.parametrize(
    "policy",
    [
        by_norm(1.0, scope="tensor"),
        by_norm(1.0, scope="tensor") | UNITS,
        by_name({"0": UNITS, "*": None}),
        by_name({"0": UNITS, "1": UNITS}),
        Policy(Measure("unit", 3.0), Fixed(1.0), Rescale()),
    ],
)
def test_any_other_plan_measures_the_tensors(policy: AnyPolicy) -> None:
    assert clip(policy) == (1, pytest.approx(np.sqrt(8) * 3))


@pytest.mark.parametrize("value", [1e-200, 1e-76, 1e76, 1e200])
def test_units_whose_squares_may_leave_float64_are_measured_again(value: float) -> None:
    assert clip(UNITS, value) == (1, pytest.approx(np.sqrt(8) * value, rel=1e-14, abs=0))
