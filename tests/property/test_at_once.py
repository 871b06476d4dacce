"""The drop-in, the clipper and `attach` do the same at once as in steps, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from gradclip import kernel
from gradclip.torch import Clipper, attach, clip_grad_norm_
from gradclip.torch.tensors import at_once

pytestmark = pytest.mark.skipif(not kernel.available(), reason="needs the C kernel")

values = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, 1e-30, 1e30, float("inf"), float("nan")]),
)
rows = st.lists(st.lists(values, max_size=4), min_size=1, max_size=10)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
policies = ["norm:1.0", "norm:1.0,order=inf", "auto", "zclip", "normalise:1.0", "band:0.5,2.0"]
policies += ["value:1.0", "value:-1.0,0.5"]


def parameters(rows: list[list[float]], dtype: torch.dtype) -> list[Parameter]:
    found = []
    for row in rows:
        param = Parameter(torch.zeros(len(row), dtype=dtype))
        param.grad = torch.tensor(row).to(dtype)
        found.append(param)
    return found


def gradients(params: list[Parameter]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def assert_same(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


in_steps = patch.object(at_once, "gradients", lambda _: None)
"""What turns the way at once off."""


@settings(deadline=None)
@given(
    rows=rows,
    dtype=dtypes,
    limit=st.sampled_from([0.0, 1e-3, 1, 1.0, 1e300, float("inf")]),
    order=st.sampled_from([1.0, 2, 2.0, float("inf")]),
)
def test_the_drop_in(
    rows: list[list[float]], dtype: torch.dtype, limit: float, order: float
) -> None:
    mine, theirs = parameters(rows, dtype), parameters(rows, dtype)
    found = clip_grad_norm_(mine, limit, order)
    with in_steps:
        expected = clip_grad_norm_(theirs, limit, order)
    assert_same(found, expected)
    for a, b in zip(gradients(mine), gradients(theirs), strict=True):
        assert_same(a, b)


@pytest.mark.filterwarnings("ignore::gradclip.GradclipWarning")
@settings(deadline=None)
@given(
    steps=st.lists(rows, min_size=1, max_size=6),
    dtype=dtypes,
    policy=st.sampled_from(policies),
    nonfinite=st.sampled_from(["skip", "zero", "propagate"]),
)
def test_the_clipper(
    steps: list[list[list[float]]], dtype: torch.dtype, policy: str, nonfinite: str
) -> None:
    most = max(map(len, steps))
    mine, theirs = ([Parameter(torch.zeros(1, dtype=dtype)) for _ in range(most)] for _ in "ab")
    clippers = [Clipper(ps, policy, nonfinite=nonfinite, max_skips=99) for ps in (mine, theirs)]  # pyright: ignore[reportArgumentType]
    for rows in steps:
        for params in (mine, theirs):
            for param, row in zip(params, rows + [[0.5]] * (most - len(rows)), strict=True):
                param.grad = torch.tensor([*row, 0.25][:1]).to(dtype)
        found = clippers[0].clip_()
        with in_steps:
            expected = clippers[1].clip_()
        for a, b in zip(gradients(mine), gradients(theirs), strict=True):
            assert_same(a, b)
        for field in dataclasses.fields(expected):
            one, other = getattr(found, field.name), getattr(expected, field.name)
            if isinstance(other, Tensor):
                assert_same(one, other)
            else:
                assert one == other, field.name
    for key in ("steps", "clipped", "skipped", "in_a_row"):
        assert clippers[0].state_dict()[key] == clippers[1].state_dict()[key]
    assert str(clippers[0].state_dict()["memory"]) == str(clippers[1].state_dict()["memory"])


@pytest.mark.filterwarnings("ignore::gradclip.GradclipWarning")
@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(rows, min_size=1, max_size=6),
    dtype=dtypes,
    policy=st.sampled_from(["feedback(norm:1.0)", "feedback(auto)", "feedback(normalise:1.0)"]),
)
def test_feedback(steps: list[list[list[float]]], dtype: torch.dtype, policy: str) -> None:
    """Values and memory bit for bit; norms are sums in another order."""
    size = max(map(len, steps))
    both = [[Parameter(torch.zeros(4, dtype=dtype)) for _ in range(size)] for _ in "ab"]
    mine, theirs = (Clipper(params, policy, max_skips=99) for params in both)
    for step in steps:
        for params in both:
            for index, param in enumerate(params):
                row = (step[index % len(step)] + [1.0] * 4)[:4]
                param.grad = torch.tensor(row).to(dtype)
        found = mine.clip_()
        with in_steps:
            expected = theirs.clip_()
        for a, b in zip(*map(gradients, both), strict=True):
            assert_same(a, b)
        assert (found.clipped, found.skipped) == (expected.clipped, expected.skipped)
        for name in ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit", "norms"):
            one, other = getattr(found, name), getattr(expected, name)
            # Of a small share that is cut off, half of the digits are lost in the norms.
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-7, equal_nan=True)
    assert str(mine.state_dict()["memory"]) == str(theirs.state_dict()["memory"])


def test_a_write_is_seen_by_autograd() -> None:
    params = parameters([[3.0, 4.0]], torch.float32)
    policies = "norm:0.5", "value:0.1", "feedback(norm:0.01)"
    clippers = [Clipper(params, policy) for policy in policies]
    for clipper in clippers:  # The first step of each makes the memory.
        clipper.clip_()
    for call in (lambda: clip_grad_norm_(params, 1e-3), *(each.clip_ for each in clippers)):
        for param in params:
            param.grad.fill_(3.0)  # pyright: ignore[reportOptionalMemberAccess]
        before = gradients(params)[0]._version
        call()
        assert gradients(params)[0]._version > before


@pytest.mark.filterwarnings("ignore::gradclip.GradclipWarning")
@settings(deadline=None)
@given(
    steps=st.lists(rows, min_size=1, max_size=4),
    dtype=dtypes,
    policy=st.sampled_from([*policies, "skip_above:2.0"]),
    fused=st.booleans(),
    nonfinite=st.sampled_from(["skip", "zero", "propagate"]),
)
def test_attached(
    steps: list[list[list[float]]], dtype: torch.dtype, policy: str, fused: bool, nonfinite: Any
) -> None:
    """The weights, the gradients, the results and the memory, with the factor folded or not."""
    size = max(map(len, steps))
    both = []
    for way in (contextlib.nullcontext(), in_steps):
        params = parameters([[0.5] * 4] * size, dtype)
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
        clipper = attach(optimizer, policy, nonfinite=nonfinite, max_skips=99)
        results = []
        with way:
            for step in steps:
                for index, param in enumerate(params):
                    row = (step[index % len(step)] + [1.0] * 4)[:4]
                    param.grad = torch.tensor(row).to(dtype)
                optimizer.step()
                assert clipper.last is not None
                results.append(clipper.last)
        both.append((params, results, clipper))
    (mine, found, one), (theirs, expected, other) = both
    assert [each.ran for each in found] == [each.ran for each in expected]
    for a, b in zip([*mine, *gradients(mine)], [*theirs, *gradients(theirs)], strict=True):
        assert_same(a.detach(), b.detach())
    for a, b in zip(found, expected, strict=True):
        for name in ("total_norm", "clipped_norm", "coef", "limit", "clipped", "skipped", "norms"):
            assert_same(getattr(a, name), getattr(b, name))
    assert str(one.state_dict()) == str(other.state_dict())
    assert (one.steps, one.clipped, one.skipped) == (other.steps, other.clipped, other.skipped)
    one.detach()
    other.detach()
