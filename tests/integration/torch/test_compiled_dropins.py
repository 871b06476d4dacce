"""The drop-ins inside of a compiled step: one graph, and no more kernels than torch's own need."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import metrics

from gradclip.torch import clip_grad_norm_, clip_grad_value_

SHAPES = ((8, 16), (33,), (4, 4, 4))
Clip = Callable[[Sequence[Tensor], Any], Any]

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None,
    reason="torch.compile needs a C++ compiler",
)


def _parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return list(params)


def _compiled(clip: Clip) -> tuple[int, int, list[Tensor]]:
    """Clip and step in one function; return its graphs, its kernels and the new parameters."""
    torch._dynamo.reset()
    metrics.reset()
    counter, params = CompileCounterWithBackend("inductor"), _parameters()

    def step(limit: Tensor) -> None:
        clip(params, limit)
        with torch.no_grad():
            for param in params:
                assert param.grad is not None
                param.add_(param.grad, alpha=-0.1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own imports
        torch.compile(step, fullgraph=True, backend=counter)(torch.tensor(0.5))
    return counter.frame_count, metrics.generated_kernel_count, params


def _none(_params: Sequence[Tensor], _limit: Tensor) -> None:
    """Clip nothing."""


def test_the_norm_takes_one_graph_and_hardly_more_kernels_than_torchs() -> None:
    graphs, ours, clipped = _compiled(clip_grad_norm_)
    _, theirs, expected = _compiled(torch.nn.utils.clip_grad_norm_)
    _, bare, plain = _compiled(_none)
    assert graphs == 1
    assert bare == len(SHAPES)
    assert bare < ours <= theirs + 1  # One norm for each tensor, their sum, and the exact limit.
    for mine, other, left in zip(clipped, expected, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(mine, left)


def test_the_values_are_clipped_in_the_kernels_of_the_update() -> None:
    def clip(params: Sequence[Tensor], _limit: Tensor) -> None:
        clip_grad_value_(params, 0.1)

    graphs, kernels, clipped = _compiled(clip)
    assert (graphs, kernels) == (1, _compiled(_none)[1])
    for mine, before in zip(clipped, _parameters(), strict=True):
        assert before.grad is not None
        want = before - 0.1 * before.grad.clamp(-0.1, 0.1)
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-7)
