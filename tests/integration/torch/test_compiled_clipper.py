"""A clipper inside of a compiled function: one graph, compiled twice, the numbers of outside."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from gradclip import GradclipWarning
from gradclip.torch import Clipper

STEPS = 5


def clipper_for(policy: str) -> Clipper:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    return Clipper(model.named_parameters(), policy, nonfinite="skip")


def put(clipper: Clipper, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in clipper.params:
        assert param.grad is not None
        param.grad.copy_(torch.randn(param.shape, generator=generator) * (1 + step % 3))
        if step == 2:
            param.grad.fill_(torch.nan)


@pytest.mark.parametrize(
    "policy", ["norm:0.5", "auto", "zclip", "online_quantile", "value:0.1", "agc"]
)
def test_a_compiled_step_gives_what_a_plain_one_gives(policy: str) -> None:
    torch._dynamo.reset()
    compiled, plain = clipper_for(policy), clipper_for(policy)
    counter = CompileCounterWithBackend("eager")
    step_of = torch.compile(lambda: compiled.clip_(), fullgraph=True, backend=counter)
    for step in range(STEPS):
        put(compiled, step)
        put(plain, step)
        found = step_of()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradclipWarning)  # Of the step that is skipped.
            expected = plain.clip_()
        for name in ("total_norm", "coef", "limit", "skipped"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), equal_nan=True, check_dtype=False
            )
        for mine, theirs in zip(compiled.params, plain.params, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, equal_nan=True)
    assert counter.frame_count == 2
    assert compiled.state_dict()["steps"] == plain.state_dict()["steps"] == STEPS
    assert compiled.clipped == plain.clipped
    assert compiled.skipped == plain.skipped == 1
