"""Properties of gradients that are not one plain tensor each: shared memory, sparse, float8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradclip import PolicyError, by_norm, centered, clip21, parse, with_feedback
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper, attach, clip_grad_norm_, clip_grad_value_
from gradclip.torch.tensors.overlap import overlaps_itself, sharing

seeds = st.integers(0, 2**32 - 1)

POLICIES = [
    "norm:0.5",
    "norm:0.5,scope=tensor",
    "norm:0.3,scope=unit",
    "norm:0.5,order=1",
    "value:-0.5,0.2",
    "normalise:2",
    "value:0.5|norm:0.5",
    "clippy",
    "agc:0.01",
    "agc:0.01,axis=1",
    "agc:0.01,axis=0+1",
    "norm:0.1,scope=unit,axis=-1",
    "acclip",
    "spam:warmup=1,theta=1",
    "zclip",
    "adagc",
    "adaptive-spectral:rank=2",
    "0=norm:0.1;*=value:0.2",
]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _views(draw: Callable[..., Any]) -> list[Tensor]:
    """Return matrices, some of which share memory with others or with themselves."""
    memory = _normal(draw(seeds), 48)
    views = []
    for _ in range(draw(st.integers(1, 4))):
        strides = draw(st.sampled_from([(3, 1), (1, 4), (6, 2), (1, 1), (0, 1), (2, 0)]))
        offset = draw(st.integers(0, 47 - 3 * strides[0] - 2 * strides[1]))
        views.append(memory.as_strided((4, 3), strides, offset))
    return views


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_memory_that_is_met_again_is_found(data: st.DataObject) -> None:
    """The judge is the set of addresses."""
    views = _views(data.draw)
    places: list[list[int]] = []
    for view in views:
        numbers = torch.arange(48).as_strided(view.shape, view.stride(), view.storage_offset())
        places.append(numbers.flatten().tolist())
    for view, own in zip(views, places, strict=True):
        assert overlaps_itself(view) == (len(set(own)) < len(own))
    alone = [i for i, view in enumerate(views) if not overlaps_itself(view)]
    seen: set[int] = set()
    expected = set()
    for place, i in enumerate(alone):
        if seen & set(places[i]):
            expected.add(place)
        else:
            seen |= set(places[i])
    assert sharing([views[i] for i in alone]) == expected


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_shared_memory_is_clipped_as_memory_apart(policy: str, data: st.DataObject) -> None:
    views = _views(data.draw)
    views.append(views[0])
    found = []
    for grads in (views, [view.clone() for view in views]):
        params = [torch.nn.Parameter(torch.ones(4, 3)) for _ in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        result = Clipper(params, policy).clip_()
        found.append((result, [param.grad for param in params]))
    (shared, ours), (apart, theirs) = found
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-7)
    assert float(shared.total_norm) == pytest.approx(float(apart.total_norm), rel=1e-12)
    assert float(shared.clipped_norm) == pytest.approx(float(apart.clipped_norm), rel=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_shared_gradient_is_divided_once_on_the_fold_too(fused: bool) -> None:
    a, b = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    a.grad = b.grad = torch.full((4,), 10.0)
    optimizer = torch.optim.SGD([a, b], lr=1.0, fused=fused)
    attach(optimizer, "norm:1.0")
    optimizer.step()
    assert float(torch.cat([a, b]).detach().norm()) == pytest.approx(1.0, rel=1e-6)


def test_the_drop_ins_scale_a_shared_gradient_once() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    a.grad = b.grad = torch.full((4,), 10.0)
    assert float(clip_grad_norm_([a, b], 1.0)) == pytest.approx(20 * 2**0.5)
    assert a.grad is not None
    assert b.grad is not None
    assert float(torch.cat([a.grad, b.grad]).norm()) == pytest.approx(1.0, rel=1e-6)


# ---- sparse ----------------------------------------------------------------------------------

ON_SPARSE: list[AnyPolicy] = [
    *(parse(text) for text in POLICIES[:-1]),
    parse("value:0.1,2"),
    parse("norm:0.5|spam:warmup=1,theta=1|agc:0.1"),
    parse("stable-spam"),
    with_feedback(by_norm(0.5)),
    centered(by_norm(0.5)),
    clip21(by_norm(0.5)),
]


def _train(
    policy: AnyPolicy, steps: list[list[int]], *, sparse: bool, path: object
) -> list[Tensor]:
    """Return the gradients of an embedding's table after each step, dense."""
    del path
    table = torch.nn.Embedding(6, 3, sparse=sparse)
    with torch.no_grad():
        table.weight.copy_(_normal(7, 6, 3))
    clipper, found = Clipper([("table", table.weight)], policy), []
    for step, rows in enumerate(steps):
        table.zero_grad()
        (table(torch.tensor(rows)) * _normal(step, len(rows), 3) * 3).sum().backward()
        clipper.clip_()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == sparse
        found.append(table.weight.grad.to_dense().clone())
    return found


@pytest.mark.parametrize("policy", ON_SPARSE, ids=str)
@settings(deadline=None, max_examples=15)
@given(steps=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_sparse_gradient_is_clipped_as_its_table(
    policy: AnyPolicy, steps: list[list[int]]
) -> None:
    ours = _train(policy, steps, sparse=True, path=None)
    dense = _train(policy, steps, sparse=False, path=None)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_other_sparse_layouts_are_clipped_too() -> None:
    dense = _normal(3, 4, 6)
    for grad in (dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((2, 3))):
        param = torch.nn.Parameter(torch.ones(4, 6))
        try:
            param.grad = grad.clone()
        except RuntimeError:
            continue  # This torch lets no parameter have it.
        Clipper([param], "agc:0.01").clip_()
        twin = torch.nn.Parameter(torch.ones(4, 6))
        twin.grad = dense.clone()
        Clipper([twin], "agc:0.01").clip_()
        assert param.grad is not None
        torch.testing.assert_close(param.grad.to_dense(), twin.grad)


# ---- float8, whole numbers, complex, axes ----------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("policy", [*POLICIES[:-1], "feedback(norm:0.5)", "stable-spam"])
def test_float8_is_clipped_as_its_values_in_float32(policy: str, kind: torch.dtype) -> None:
    values = _normal(5, 4, 3).to(kind)
    found = []
    for grad in (values.clone(), values.float()):
        param = torch.nn.Parameter(torch.ones(4, 3, dtype=grad.dtype), requires_grad=False)
        param.grad = grad
        clipper = Clipper([param], policy)
        clipper.clip_()
        found.append(param.grad)
    torch.testing.assert_close(found[0].float(), found[1].to(kind).float())


def _given(grad: Tensor) -> Tensor:
    param = torch.nn.Parameter(torch.ones(grad.shape).to(grad.dtype), requires_grad=False)
    param.grad = grad
    return param


REFUSED: dict[str, tuple[Callable[[], Tensor], str, str]] = {
    "complex by value": (lambda: torch.ones(2, 2) + 1j, "norm:0.1|value:0.1", "complex"),
    "complex spikes": (lambda: torch.ones(2, 2) + 1j, "norm:0.1|stable-spam", "complex"),
    "complex memory": (lambda: torch.ones(2, 2) + 1j, "norm:0.1|acclip", "complex"),
    "whole numbers": (lambda: torch.ones(2, 2, dtype=torch.int64), "norm:0.1", "holds floats"),
    "an axis too far": (lambda: torch.ones(2, 2), "norm:0.1|agc:axis=2", "has 2 axes"),
    "an axis too low": (lambda: torch.ones(2, 2), "norm:0.1|agc:axis=-3", "has 2 axes"),
}


@pytest.mark.parametrize("case", REFUSED, ids=list(REFUSED))
def test_what_cannot_be_done_is_refused_before_a_gradient_changes(case: str) -> None:
    make, policy, told = REFUSED[case]
    plain, odd = _given(torch.full((2, 2), 5.0)), _given(make())
    clipper = Clipper([("plain", plain), ("odd", odd)], policy)
    for _ in range(2):
        with pytest.raises(PolicyError, match=told):
            clipper.clip_()
        assert plain.grad is not None
        assert odd.grad is not None
        assert torch.equal(plain.grad, torch.full((2, 2), 5.0))
        assert torch.equal(odd.grad, make())
        assert clipper.steps == 0


@pytest.mark.parametrize("drop_in", [clip_grad_norm_, clip_grad_value_])
def test_the_drop_ins_refuse_whole_numbers(drop_in: Callable[..., object]) -> None:
    plain, odd = _given(torch.full((2, 2), 5.0)), _given(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(PolicyError, match="holds floats"):
        drop_in([plain, odd], 0.1)
    assert plain.grad is not None
    assert torch.equal(plain.grad, torch.full((2, 2), 5.0))


@pytest.mark.parametrize(
    "policy", ["agc:axis=1", "agc:axis=-1", "agc:axis=0+-1", "agc", "norm:0.3,scope=unit"]
)
@settings(deadline=None, max_examples=15)
@given(present=st.lists(st.booleans(), min_size=3, max_size=3), seed=seeds)
def test_a_missing_gradient_is_as_if_its_parameter_were_not_there(
    policy: str, present: list[bool], seed: int
) -> None:
    shapes = [(4, 3), (5, 2), (2, 3, 4)]
    grads = [_normal(seed % 1000 + i, *shape) for i, shape in enumerate(shapes)]

    def clipped(chosen: list[bool], given: list[bool]) -> list[Tensor]:
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        for param, grad, there in zip(params, grads, given, strict=True):
            param.grad = grad.clone() if there else None
        Clipper([p for p, there in zip(params, chosen, strict=True) if there], policy).clip_()
        return [p.grad for p in params if p.grad is not None]

    present = present if any(present) else [True, False, False]
    torch.testing.assert_close(clipped([True] * 3, present), clipped(present, present))
