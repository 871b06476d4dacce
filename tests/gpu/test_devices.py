"""Every method keeps its numbers where the gradients are, and copies nothing there after a step.

Fake tensors on the device "meta" stand for a card: torch refuses to mix them with CPU tensors, as a
card does, and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from contract.methods import ROWS
from gradclip import ByName, by_norm
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper, clip_grad_norm_, clip_grad_value_
from gradclip.torch.tensors import places
from stream import SHAPES

POLICIES: tuple[AnyPolicy, ...] = (
    *(row.policy for row in ROWS),
    by_norm(0.5, scope="tensor"),
    ByName((("0", by_norm(1.0)), ("*", by_norm(2.0)))),
    ByName((("0", by_norm(1.0)), ("*", None))),
)
NUMBERS = ("total_norm", "clipped_norm", "coef", "clipped", "skipped", "removed", "limit", "norms")


class Copies(TorchDispatchMode):
    """Counts copies of several values from a CPU tensor to the card, each of which waits."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            given = args[0]
            self.count += given.device.type == "cpu" and result.device.type == "meta"
        return result


@pytest.fixture
def card() -> Iterator[None]:
    """Have tensors be fake ones, so that devices must not mix."""
    places._constants.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    places._constants.cache_clear()


def params_with_gradients() -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.zeros(shape, device="meta")) for shape in SHAPES]
    for param in params:
        param.grad = torch.zeros(param.shape, device="meta")
    return params


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.usefixtures("card")
def test_a_step_mixes_no_devices_and_copies_nothing(policy: AnyPolicy, nonfinite: Any) -> None:
    params = params_with_gradients()
    clipper = Clipper(params, policy, max_skips=1000, nonfinite=nonfinite)
    loss = torch.zeros((), device="meta")
    clipper.clip_(loss=loss)
    with Copies() as copies:
        result = clipper.clip_(loss=loss)
    assert {getattr(result, name).device.type for name in NUMBERS} == {"meta"}
    assert copies.count == 0


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.usefixtures("card")
def test_a_missing_gradient_mixes_no_devices(policy: AnyPolicy) -> None:
    params = params_with_gradients()
    clipper = Clipper(params, policy, max_skips=1000)
    params[1].grad = None
    clipper.clip_(loss=torch.zeros((), device="meta"))
    result = clipper.clip_(loss=torch.zeros((), device="meta"))
    assert {getattr(result, name).device.type for name in NUMBERS} == {"meta"}


@pytest.mark.usefixtures("card")
def test_the_drop_ins_mix_no_devices_and_copy_nothing() -> None:
    params = params_with_gradients()
    with Copies() as copies:
        total = clip_grad_norm_(params, 1.0)
        clip_grad_value_(params, 0.1)
    assert total.device.type == "meta"
    assert copies.count == 0


@pytest.mark.usefixtures("card")
def test_a_copy_is_noticed() -> None:
    with Copies() as copies:
        torch.zeros(2).to("meta")
    assert copies.count == 1
