"""The norm of a clipped sample never exceeds the limit: in fractions, which round nothing."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradclip import Policy, by_name, by_norm, normalise, smooth
from gradclip.torch import per_sample
from gradclip.torch.samples.forms import (
    Form,
    Lookup,
    Outer,
    Rows,
    joined,
    size_of,
    squares_of,
    summed,
    written,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Exact = list[list[Fraction]]


class Pair(nn.Module):
    """Two linear layers side by side, each in a dtype of its own, and a table."""

    def __init__(self, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        # No row of the first is written out for up to six terms, and each of the second for two.
        self.a = nn.Linear(13, 12, dtype=first)
        self.b = nn.Linear(3, 2, bias=False, dtype=second)
        self.c = nn.Embedding(3, 2, dtype=first)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
        return [self.a(x), self.b(y), self.c(z)]


class Data(NamedTuple):
    """The inputs of the layers, and the gradients of their outputs: shape (B, T, …)."""

    inputs: list[Tensor]
    pulls: list[Tensor]


def drawn(seed: int, batch: int, times: int, spread: float, near: float, model: Pair) -> Data:
    """Return data whose terms cancel but for a share `near`, over several powers of ten."""
    gen = torch.Generator().manual_seed(seed)

    def values(width: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(batch, times, width, generator=gen, dtype=torch.float64)
        x *= 10 ** (spread * torch.rand(batch, times, 1, generator=gen, dtype=torch.float64))
        return x.to(dtype)

    first, second = model.a.weight.dtype, model.b.weight.dtype
    words = torch.randint(0, 2, (batch, times), generator=gen)
    inputs = [values(13, first), values(3, second), words]
    pulls = [values(12, first), values(2, second), values(2, first)]
    half = times // 2
    for x, pull in zip(inputs, pulls, strict=True):
        x[:, half : 2 * half] = x[:, :half]
        pull[:, half : 2 * half] = -pull[:, :half] * (1 - near)
    return Data(inputs, pulls)


def exact_squares(data: Data) -> list[Fraction]:
    """Return the squared norm of each sample's gradient, in fractions."""
    found = []
    for i in range(len(data.pulls[0])):
        x, y = (_fractions(each[i]) for each in data.inputs[:2])
        words = data.inputs[2][i].tolist()
        a, b, c = (_fractions(each[i]) for each in data.pulls)
        table = [[[Fraction(int(k == word)) for k in range(3)] for word in words], c]
        total = _square(a, x) + _square(b, y) + _square(table[1], table[0])
        found.append(total + _square(a, [[Fraction(1)]] * len(a)))
    return found


def _fractions(values: Tensor) -> Exact:
    return [[Fraction(v) for v in row] for row in values.double().tolist()]


def _square(left: Exact, right: Exact) -> Fraction:
    """Return ‖Σₜ leftₜ ⊗ rightₜ‖²."""
    cells = [
        sum((g[i] * a[j] for g, a in zip(left, right, strict=True)), Fraction(0))
        for i in range(len(left[0]))
        for j in range(len(right[0]))
    ]
    return sum((cell * cell for cell in cells), Fraction(0))


def backward(model: Pair, data: Data) -> None:
    outs = model(*data.inputs)
    torch.autograd.backward(outs, data.pulls)


def flat_gradient(model: Pair) -> Tensor:
    grads = [p.grad for p in model.parameters()]
    return torch.cat([grad.double().flatten() for grad in grads if grad is not None])


def policies(limit: float) -> dict[str, Policy]:
    return {
        "rescale": by_norm(limit),
        "smooth": smooth(limit),
        "linear": smooth(limit, shape="linear"),
        "normalise": normalise(limit, eps=0.0),
        "auto-s": normalise(limit, eps=0.01),
    }


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 4),
    times=st.integers(1, 6),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    near=st.sampled_from([1.0, 0.1, 1e-3, 0.0]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    ulps=st.integers(-3, 3),
    name=st.sampled_from(sorted(policies(1.0))),
)
def test_no_sample_exceeds_the_limit(
    seed: int,
    batch: int,
    times: int,
    spread: float,
    near: float,
    dtypes: tuple[torch.dtype, torch.dtype],
    ulps: int,
    name: str,
) -> None:
    model = Pair(*dtypes)
    data = drawn(seed, batch, times, spread, near, model)
    squares = exact_squares(data)
    # A limit a few last places beside the norm of a sample is the hardest one.
    limit = math.sqrt(squares[0]) * (1 + ulps * 2.0**-53) or 1.0
    clipper = per_sample(model, policies(limit)[name], "sum")
    backward(model, data)
    result = clipper.clip_()
    for square, coef in zip(squares, result.sample_coef.tolist(), strict=True):
        assert Fraction(coef) ** 2 * square <= Fraction(limit) ** 2
        if square > 0 and name == "rescale" and near == 1.0 and times == 1:
            best = min(1.0, limit / math.sqrt(square))
            assert coef >= best * (1 - 1e-13), "more is cut than the errors ask for"
    assert float(result.sensitivity) == limit
    if batch == 1:
        cells = [Fraction(value) for value in flat_gradient(model).tolist()]
        assert sum(cell * cell for cell in cells) <= Fraction(limit) ** 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 5),
    reduction=st.sampled_from(["mean", "sum"]),
    limits=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
)
def test_one_sample_moves_the_gradient_by_no_more_than_the_sensitivity(
    seed: int, batch: int, reduction: str, limits: tuple[float, float]
) -> None:
    model = Pair(torch.float32, torch.float32)
    policy = by_name({"a.*": by_norm(limits[0]), "*": by_norm(limits[1], scope="tensor")})
    data = drawn(seed, batch + 1, 3, 2.0, 1.0, model)

    def clipped(count: int) -> tuple[Tensor, float]:
        model.zero_grad()
        with per_sample(model, policy, reduction) as clipper:  # pyright: ignore[reportArgumentType]
            outs = model(*(each[:count] for each in data.inputs))
            scale = count if reduction == "mean" else 1
            torch.autograd.backward(outs, [each[:count] / scale for each in data.pulls])
            result = clipper.clip_()
        return flat_gradient(model), float(result.sensitivity)

    (less, most), (more, _) = clipped(batch), clipped(batch + 1)
    assert float((more - less).norm()) <= most * (1 + 1e-5)  # Sums are rounded to float32.
    whole = math.hypot(limits[0], limits[1], limits[1])
    assert most == pytest.approx(whole * (2 / batch if reduction == "mean" else 1), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    times=st.integers(2, 6),
    near=st.sampled_from([1.0, 1e-3, 1e-9, 0.0]),
    kind=st.sampled_from(
        ["outer", "outer broad", "outer rows", "lookup", "lookup rows", "summed", "tied", "several"]
    ),
)
def test_the_exact_squared_norm_is_within_the_slack(
    seed: int, times: int, near: float, kind: str
) -> None:
    gen = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(1, 2 * times, w, generator=gen).double() for w in (3, 2))
    right[:, times:] = right[:, :times]
    left[:, times:] = -left[:, :times] * (1 - near)
    words = torch.randint(0, 3, (1, 2 * times), generator=gen)
    words[:, times:] = words[:, :times]
    chosen = nn.functional.one_hot(words, 3).double()
    outer = Outer(right.mT[:, None], left.mT[:, None], torch.Size((2, 3)))
    broad = Outer(*(torch.cat([x] * 9, 2).mT[:, None] for x in (right, left)), torch.Size((18, 27)))
    lookup = Lookup(words, left.mT, torch.Size((3, 3)))
    wide = Outer(chosen.mT[:, None], left.mT[:, None], torch.Size((3, 3)))
    other = Rows(left[:, :3], torch.linalg.vector_norm(left[:, :3].flatten(1), dim=1))
    forms: dict[str, tuple[Form, list[tuple[Tensor, Tensor]]]] = {
        "outer": (outer, [(right, left)]),
        "outer broad": (broad, [(torch.cat([right] * 9, 2), torch.cat([left] * 9, 2))]),
        "outer rows": (written(outer, torch.float32), [(right, left)]),
        "lookup": (lookup, [(chosen, left)]),
        "lookup rows": (written(lookup, torch.float32), [(chosen, left)]),
        "summed": (summed(left.mT), [(torch.ones(1, 2 * times, 1), left)]),
        "tied": (joined([lookup, wide]), [(chosen, left), (chosen, left)]),
        "several": (joined([lookup, other]), [(chosen, left), (torch.eye(3)[None], left[:, :3])]),
    }
    form, terms = forms[kind]
    squares = squares_of(form)
    first, second = (torch.cat([pair[i][0] for pair in terms]) for i in (0, 1))
    exact = _square(_fractions(first), _fractions(second))
    value, slack = Fraction(float(squares.values)), Fraction(float(squares.slack))
    assert exact <= value + slack
    assert value <= exact + slack
    assert float(slack) <= 1e-12 * float(size_of(form)) ** 2
