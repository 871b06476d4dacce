"""Where there is no fold: the gradients are scaled in place, and the clipper says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import by_name, by_norm
from gradclip.torch import Clipper, attach
from gradclip.torch.step.fused import refusal_of_gradients, seen_on
from gradclip.torch.tensors.gradients import Gradients
from integration.training import MAX_NORM, net, owned, scripted_gradients, weights

from .folds import LARGE, Kernels, adamw, bare, close, folded, norm_of

o = torch.optim


class _Reads(torch.optim.AdamW):
    """Its own step looks at the gradients first."""

    def step(self, closure: Any = None) -> Any:
        """Note the norm."""
        self.seen = norm_of(owned(self))
        return super().step(closure)


REFUSED: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], Any, str]] = {
    "a factor per tensor": (adamw, "norm:0.5,scope=tensor", "one factor"),
    "rules by name": (adamw, by_name({"0.*": "norm:0.5", "*": "norm:1"}), "one factor"),
    "some left out": (adamw, by_name({"0.*": "norm:0.5", "*": None}), "one factor"),
    "values": (adamw, "value:0.01", "one factor"),
    "values, then the norm": (adamw, "value:0.01|norm:0.05", "one factor"),
    "units": (adamw, "norm:0.05,scope=unit", "one factor"),
    "a wrapper": (adamw, "feedback(norm:0.5)", "one factor"),
    "nothing": (adamw, None, "one factor"),
    "not fused": (lambda m: o.AdamW(m.parameters(), lr=0.01), "norm:0.5", "fused=True"),
    "foreach": (lambda m: o.SGD(m.parameters(), 0.1, foreach=True), "norm:0.5", "fused=True"),
    "RMSprop": (lambda m: o.RMSprop(m.parameters()), "norm:0.5", "RMSprop is not one of"),
    "NAdam": (lambda m: o.NAdam(m.parameters()), "norm:0.5", "NAdam is not one of"),
    "LBFGS": (lambda m: o.LBFGS(m.parameters()), "norm:0.5", "LBFGS is not one of"),
    "a subclass": (lambda m: _Reads(m.parameters(), fused=True), "norm:0.5", "_Reads is not one"),
    "float64": (lambda m: adamw(m.double()), "norm:0.5", "too coarse for gradients of float64"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("decided")
def test_what_cannot_be_folded_is_scaled_in_place_and_says_why(case: str) -> None:
    factory, policy, why = REFUSED[case]
    model, twin = net(), net()
    optimizer, other = factory(model), factory(twin)
    clipper = attach(optimizer, policy, model=model)
    # What one does by hand with the same policy is the judge: the fold alone is in question.
    judge = Clipper(twin.named_parameters(), policy)
    for step in range(3):
        for m, opt in ((model, optimizer), (twin, other)):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            m.zero_grad()
            (20 * m(x.to(m.get_parameter("0.weight").dtype))).square().mean().backward()
            if opt is other:
                judge.clip_()
            with Kernels() as kernels:
                _call(opt, case)
            assert not any(kernels.scales)
        assert not folded(clipper)
        assert clipper.scaled_because is not None
        assert why in clipper.scaled_because
        assert bare(optimizer)
    close(weights(model), weights(twin))
    if isinstance(optimizer, _Reads):
        assert optimizer.seen == pytest.approx(0.5, rel=1e-6)


def _call(optimizer: torch.optim.Optimizer, case: str) -> None:
    optimizer.step((lambda: 1.0) if case == "LBFGS" else None)  # type: ignore[arg-type]


def test_on_update_is_not_folded() -> None:
    model = net()
    optimizer = adamw(model)
    clipper = attach(optimizer, "norm:0.001", on="update")
    scripted_gradients(model, LARGE)
    with Kernels() as kernels:
        optimizer.step()
    assert not folded(clipper)
    assert kernels.scales == [None]


def test_a_hook_that_runs_after_the_clipper_sees_clipped_gradients() -> None:
    model, seen = net(), []
    optimizer = adamw(model)
    first = optimizer.register_step_pre_hook(lambda *_: seen.append(norm_of(owned(optimizer))))
    clipper = attach(optimizer, by_norm(MAX_NORM))
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert folded(clipper)  # A hook that runs before it does not matter.
    later = optimizer.register_step_pre_hook(lambda *_: seen.append(norm_of(owned(optimizer))))
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert not folded(clipper)
    assert "another step pre-hook" in str(clipper.scaled_because)
    assert seen[1] > 10 * MAX_NORM
    assert seen[2] == pytest.approx(MAX_NORM, rel=1e-6)
    later.remove()
    first.remove()
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert folded(clipper)


def test_gradients_that_the_kernel_would_write_wrongly() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([param], lr=0.1, fused=True)
    clipper = attach(optimizer, "norm:1")
    param.grad = torch.full((1,), 4.0).expand(3)
    optimizer.step()
    assert not folded(clipper)
    assert "share memory" in str(clipper.scaled_because)
    torch.testing.assert_close(param.grad, torch.full((3,), 3**-0.5))
    param.grad = torch.full((3,), 4.0)
    optimizer.step()
    assert folded(clipper)


class _Special(Tensor):
    """As a sharded tensor is: what a kernel does with it is its own affair."""


def test_gradients_that_a_kernel_may_not_divide() -> None:
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    for tensors, why in (
        ([here, there], "several devices"),
        ([there], "meta may ignore"),
        ([here.as_subclass(_Special)], "not a plain tensor"),
    ):
        found = refusal_of_gradients(Gradients(tensors, ["a", "b"][: len(tensors)]))
        assert why in str(found)
    assert seen_on("meta") == []


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([param, param], lr=0.1, fused=True)
    clipper = attach(optimizer, "norm:1")
    param.grad = torch.full((3,), 4.0)
    optimizer.step()
    assert not folded(clipper)
    assert norm_of([param]) == pytest.approx(1, rel=1e-6)


def test_a_detached_clipper_does_not_claim_the_fold() -> None:
    clipper = attach(adamw(net()), "norm:1")
    assert clipper.scaled_because is None
    clipper.detach()
    assert clipper.scaled_because == Clipper([torch.zeros(1)], "norm:1").scaled_because
    assert "not attached" in str(clipper.scaled_because)
