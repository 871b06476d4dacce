"""The contract: what every recipe does, on every backend, to every kind of gradient.

Three tables meet here. `ROWS` has a row for each recipe: adding a recipe is adding a row.
`CASES` has the gradients that break clippers. `BACKENDS` has what can run. The oracle judges.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gradclip.numpy
import oracle
from conftest import PATHS, OnPath
from gradclip import (
    Chain,
    ClipResult,
    GradclipWarning,
    NonFiniteError,
    PolicyError,
    by_name,
    by_norm,
    by_value,
    floor,
)
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper
from oracle import Array

# ---- the table of recipes ------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One policy: how to make it with a given limit, and what it should do.

    Attributes:
        recipe: the catalogue's name of the recipe that the row covers.
        policy: the policy with this limit.
        ideal: what becomes of float64 arrays with this limit, by the oracle.
        order, scope: what the limit is compared with.
        floor: the limit is a lower one.
        elementwise: values are moved one by one: complex ones are refused.
        steps: how many changes follow each other; each rounds to the gradients' dtype.
    """

    recipe: str
    policy: Callable[[float], AnyPolicy]
    ideal: Callable[[Sequence[Array], float], list[Array]]
    order: oracle.Order = 2.0
    scope: str = "global"
    floor: bool = False
    elementwise: bool = False
    steps: int = 1
    label: str = field(default="")

    @property
    def result_order(self) -> oracle.Order:
        """The order of `total_norm`: the policy's, if it is one p-norm of the whole."""
        return self.order if self.scope == "global" and self.order != "rms" else 2.0

    def binding(self, arrays: Sequence[Array]) -> float:
        """Return a limit that these gradients are beyond."""
        parts = oracle.each_norm(arrays, self.order, self.scope)
        size = max(parts, default=0.0)
        if not 0 < size < math.inf:
            return 1.0
        return 2 * size if self.floor else size / 2

    def loose(self, arrays: Sequence[Array]) -> float:
        """Return a limit that these gradients are inside of."""
        scope = "global" if self.steps > 1 else self.scope
        parts = [p for p in oracle.each_norm(arrays, self.order, scope) if p > 0]
        if not parts or not max(parts) < math.inf:
            return 1.0
        return min(parts) / 2 if self.floor else 2 * max(parts)


def _norm_row(order: oracle.Order, scope: str) -> Row:
    return Row(
        "norm",
        lambda c: by_norm(c, order=order, scope=scope),  # type: ignore[arg-type]
        lambda arrays, c: oracle.rescale(arrays, high=c, order=order, scope=scope),
        order,
        scope,
        label=f"norm-{order}-{scope}",
    )


def _floor_row(order: oracle.Order, scope: str) -> Row:
    return Row(
        "floor",
        lambda c: floor(c, order=order, scope=scope),  # type: ignore[arg-type]
        lambda arrays, c: oracle.rescale(arrays, low=c, order=order, scope=scope),
        order,
        scope,
        floor=True,
        label=f"floor-{order}-{scope}",
    )


def _value_row(label: str, policy: Callable[[float], AnyPolicy], low: float, high: float) -> Row:
    return Row(
        "value",
        policy,
        lambda arrays, c: oracle.clamp(arrays, low * c, high * c),
        scope="element",
        elementwise=True,
        label=label,
    )


ROWS = [
    _norm_row(2.0, "global"),
    _norm_row(1.0, "global"),
    _norm_row(0.5, "global"),
    _norm_row(3.0, "global"),
    _norm_row(math.inf, "global"),
    _norm_row("rms", "global"),
    _norm_row(2.0, "tensor"),
    _norm_row(math.inf, "tensor"),
    _norm_row("rms", "tensor"),
    _norm_row(2.0, "unit"),
    _norm_row(1.0, "unit"),
    _value_row("value", by_value, -1, 1),
    _value_row("value-two-sided", lambda c: by_value(-2 * c, c), -2, 1),
    _value_row("value-no-upper", lambda c: by_value(min=-c), -1, math.inf),
    _floor_row(2.0, "global"),
    _floor_row(2.0, "tensor"),
    _floor_row(math.inf, "unit"),
    Row(
        "norm",
        lambda c: by_value(c) | by_norm(c),
        lambda arrays, c: oracle.rescale(oracle.clamp(arrays, -c, c), high=c),
        scope="element",
        elementwise=True,
        steps=2,
        label="chain",
    ),
    Row(
        "norm",
        lambda c: by_name({"0": by_norm(c), "*": None}),
        lambda arrays, c: [*oracle.rescale(arrays[:1], high=c), *arrays[1:]],
        scope="tensor",
        label="by-name",
    ),
]

# ---- the table of gradients ----------------------------------------------------------------

Grads = list[Tensor | None]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _pair(dtype: torch.dtype) -> Grads:
    return [_random(3, 5, dtype=dtype), _random(7, dtype=dtype, seed=1)]


def _spoiled(value: float) -> Callable[[torch.dtype], Grads]:
    def build(dtype: torch.dtype) -> Grads:
        grads = _pair(dtype)
        assert grads[0] is not None
        grads[0][1, 2] = value
        return grads

    return build


def _huge(dtype: torch.dtype) -> Grads:
    size = min(1e25, torch.finfo(dtype).max / 64)
    return [torch.full((40,), size, dtype=dtype), -torch.full((2, 3), size / 2, dtype=dtype)]


def _subnormal(dtype: torch.dtype) -> Grads:
    steps = torch.tensor([1, -3, 40, 97, 0, 64], dtype=torch.float64)
    return [(steps * torch.finfo(dtype).smallest_normal / 128).to(dtype)]


def _sparse(coalesced: bool) -> Callable[[torch.dtype], Grads]:
    def build(dtype: torch.dtype) -> Grads:
        index = torch.tensor([[0, 2, 2, 4]])
        values = torch.tensor([[1, 2], [3, -4], [5, 6], [-7, 8]], dtype=dtype)
        found = torch.sparse_coo_tensor(index, values, (6, 2), check_invariants=True)
        return [found.coalesce() if coalesced else found, _random(4, dtype=dtype)]

    return build


def _complex(dtype: torch.dtype) -> Grads:
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    parts = _random(2, 6, dtype=torch.float64)
    return [torch.complex(parts[0], parts[1]).to(kind), _random(3, dtype=dtype)]


@dataclass(frozen=True)
class Case:
    """One kind of gradients."""

    name: str
    build: Callable[[torch.dtype], Grads]
    dtypes: Sequence[torch.dtype] = DTYPES
    finite: bool = True
    numpy: bool = True


_FULL = (torch.float32, torch.float64)
CASES = [
    Case("ordinary", _pair),
    Case("one", lambda d: [_random(4, 3, dtype=d)]),
    Case("scalar", lambda d: [torch.tensor(-3.0, dtype=d)]),
    Case("empty", lambda d: [torch.zeros(0, dtype=d), torch.zeros(3, 0, dtype=d)]),
    Case("empty-beside-full", lambda d: [torch.zeros(0, dtype=d), _random(4, dtype=d)]),
    Case("zero", lambda d: [torch.zeros(3, 2, dtype=d), -torch.zeros(4, dtype=d)]),
    Case("zero-beside-full", lambda d: [torch.zeros(3, 2, dtype=d), _random(4, dtype=d)]),
    Case("subnormal", _subnormal),
    Case("huge", _huge),
    Case("tiny-and-large", lambda d: [_random(4, dtype=d) * 1e-4, _random(4, dtype=d) * 100]),
    Case("inf", _spoiled(math.inf), finite=False),
    Case("minus-inf", _spoiled(-math.inf), finite=False),
    Case("nan", _spoiled(math.nan), finite=False),
    Case("transposed", lambda d: [_random(5, 3, dtype=d).T, _random(2, 3, 4, dtype=d).mT]),
    Case("strided", lambda d: [_random(12, dtype=d)[::3], _random(6, 6, dtype=d)[::2, 1::2]]),
    Case("expanded", lambda d: [_random(1, 4, dtype=d).expand(3, 4), _random(2, dtype=d)]),
    Case("none-among", lambda d: [_random(3, dtype=d), None, _random(2, 2, dtype=d)]),
    Case("none-at-all", lambda _: [None, None], (torch.float32,)),
    Case("many", lambda d: [_random(2, 2, dtype=d, seed=i) for i in range(40)], (torch.float32,)),
    Case("mixed", lambda _: [_random(5, dtype=d) for d in DTYPES], (torch.float32,), numpy=False),
    Case("sparse", _sparse(coalesced=True), _FULL, numpy=False),
    Case("sparse-uncoalesced", _sparse(coalesced=False), _FULL, numpy=False),
    Case("complex", _complex, _FULL),
]

# ---- the table of backends -----------------------------------------------------------------

BACKENDS = ("numpy", *PATHS)


Given = list[Any]
"""What a backend is given: arrays, or parameters that hold gradients."""


def given_to(backend: str, grads: Grads) -> Given:
    """Return copies of the gradients as the backend takes them."""
    if backend == "numpy":
        return [None if g is None else g.numpy().copy(order="K") for g in grads]
    return [_parameter(grad) for grad in grads]


def grads_of(given: Given) -> Grads:
    """Return the gradients that a backend was given, or gave back."""
    return [
        g.grad
        if isinstance(g, torch.nn.Parameter)
        else None
        if g is None
        else torch.from_numpy(np.asarray(g))
        for g in given
    ]


def clip(
    backend: str, on_path: OnPath, given: Given, policy: AnyPolicy | None, nonfinite: Any = "skip"
) -> tuple[Given, ClipResult]:
    """Clip on a backend; return what now holds the gradients, and the result."""
    if backend == "numpy":
        rule = Chain() if policy is None else policy
        clipped, _, result = gradclip.numpy.clip(given, rule, nonfinite=nonfinite)
        return list(clipped), result
    with on_path(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", GradclipWarning)  # a skip: test_clipper.py looks at it
        return given, Clipper(given, policy, nonfinite=nonfinite).clip_()


def run(
    backend: str, on_path: OnPath, grads: Grads, policy: AnyPolicy | None, nonfinite: Any = "skip"
) -> tuple[Grads, ClipResult]:
    """Clip copies of the gradients on a backend."""
    given, result = clip(backend, on_path, given_to(backend, grads), policy, nonfinite)
    return grads_of(given), result


def _parameter(grad: Tensor | None) -> Tensor:
    if grad is None:
        return torch.nn.Parameter(torch.zeros(3))
    param = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    param.grad = _copy(grad)
    return param


def _copy(grad: Tensor) -> Tensor:
    """Return a copy with the same strides, of memory that overlaps too."""
    if grad.layout != torch.strided:
        return grad.clone()
    size = 1 + sum((n - 1) * s for n, s in zip(grad.shape, grad.stride(), strict=True))
    memory = torch.empty(size if grad.numel() else 0, dtype=grad.dtype)
    copy = memory.as_strided(grad.shape, grad.stride())
    if 0 in grad.stride():
        memory.copy_(grad.reshape(-1)[:1].expand(size) if size == 1 else grad[0].reshape(-1))
    else:
        copy.copy_(grad)
    return copy


def arrays_of(grads: Grads) -> list[Array]:
    """Return the gradients as the oracle takes them: wide; a missing one is empty."""
    return [np.zeros(0) if g is None else _wide(g) for g in grads]


def _wide(grad: Tensor) -> Array:
    kind = torch.complex128 if grad.is_complex() else torch.float64
    return oracle.wide(grad.detach().to_dense().to(kind).numpy())


def bits(grad: Tensor) -> bytes:
    """Return the bits of a gradient's values, in order."""
    flat = grad.detach().to_dense().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def assert_same_bits(after: Grads, before: Grads) -> None:
    """Refuse any change, of dtype, shape, or a single bit."""
    for now, was in zip(after, before, strict=True):
        assert (now is None) == (was is None)
        if now is not None and was is not None:
            assert (now.dtype, now.shape, now.layout) == (was.dtype, was.shape, was.layout)
            assert bits(now) == bits(was)


def _tolerance(dtype: torch.dtype, ideal: Array, coarse: float) -> Array:
    """Return how far a value may be from the ideal one.

    Half an ulp is the best there is; the factor, rounded to float32 on a device, is the other
    half. Among subnormals an ulp is the smallest one. A second step measures what the first
    one rounded, in the coarsest dtype there is.
    """
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    return (info.eps + coarse + 4 * 2.0**-52) * np.abs(ideal) + tiny * (1 + (coarse > 0))


def assert_near(after: Grads, ideal: Sequence[Array], before: Grads, steps: int) -> None:
    """Refuse a value further from the ideal one than rounding explains."""
    coarse = _eps(after) if steps > 1 else 0.0
    for now, want, was in zip(after, ideal, before, strict=True):
        if now is None or was is None:
            assert now is was
            continue
        assert (now.dtype, now.shape) == (was.dtype, was.shape)
        got = _wide(now)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        same = (got == want) | np.isnan(want)
        off = np.abs(np.where(same, 0, got) - np.where(same, 0, want))
        room = _tolerance(now.dtype, np.where(same, 0, want), coarse)
        assert (off <= room).all(), f"off by {off.max():.3g}, allowed {room[off > room].min():.3g}"


def _grain(grads: Grads, order: oracle.Order) -> float:
    """Return how much rounding to the grid of subnormals can add to a norm, order ≥ 1."""
    halves = [
        np.full(
            g.numel() * (2 if g.is_complex() else 1),
            torch.finfo(g.dtype).smallest_normal * torch.finfo(g.dtype).eps / 2,
        )
        for g in grads
        if g is not None
    ]
    return oracle.norm(halves, order)


def _eps(grads: Grads) -> float:
    return max((torch.finfo(g.dtype).eps for g in grads if g is not None), default=2.0**-52)


# ---- the contract --------------------------------------------------------------------------

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
Check = Callable[[Row, str, Grads, OnPath], None]


def each_case(*, finite: bool | None) -> Callable[[Check], Callable[..., None]]:
    """Run a check on every backend and dtype, and there on every case of CASES.

    All cases are one test, since there would be ten thousand; a note names the one that failed.
    """

    def make(check: Check) -> Callable[..., None]:
        @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
        @pytest.mark.parametrize("backend", BACKENDS)
        def test(
            row: Row,
            backend: str,
            dtype: torch.dtype,
            on_path: OnPath,
        ) -> None:
            if backend == "numpy" and dtype == torch.bfloat16:
                pytest.skip("NumPy has no bfloat16")
            for case in CASES:
                if dtype in case.dtypes and finite in (None, case.finite):
                    _meet(check, row, backend, case, dtype, on_path)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return make


def _meet(
    check: Check, row: Row, backend: str, case: Case, dtype: torch.dtype, on_path: OnPath
) -> None:
    if backend == "numpy" and not case.numpy:
        return
    if row.elementwise and case.name == "complex":
        return  # refused: test_complex_values_are_refused_by_value_and_nothing_changes
    try:
        check(row, backend, case.build(dtype), on_path)
    except Exception as error:
        error.add_note(f"case: {case.name}")
        raise


@every_row
@each_case(finite=True)
def test_beyond_the_limit(row: Row, backend: str, before: Grads, on_path: OnPath) -> None:
    wide = arrays_of(before)
    limit = row.binding(wide)
    ideal = row.ideal(wide, limit)

    after, result = run(backend, on_path, before, row.policy(limit))

    assert_near(after, ideal, before, row.steps)
    _assert_within(row, after, limit)
    _assert_facts(row, result, wide, ideal, after)
    changes = any((a != b).any() for a, b in zip(wide, ideal, strict=True))
    assert bool(result.clipped) == changes
    assert not bool(result.skipped)


def _assert_within(row: Row, after: Grads, limit: float) -> None:
    """Promise 1: after clipping, no float64 norm exceeds max·(1 + 4 eps).

    Where the result is subnormal its dtype has no finer grid, and rounding to nearest may add
    half a step to each value: that much more is allowed, and no more.
    """
    if row.recipe != "norm" or row.label == "by-name":
        return
    scope = "global" if row.steps > 1 else row.scope
    highest = max(oracle.each_norm(arrays_of(after), row.order, scope), default=0.0)
    order = row.order
    grain = 0.0 if isinstance(order, float) and order < 1 else _grain(after, order)
    if isinstance(order, float) and order < 1 and _is_subnormal(after):
        return  # no triangle inequality: nothing so simple holds
    assert highest <= limit * (1 + 4 * _eps(after)) + grain


def _is_subnormal(grads: Grads) -> bool:
    return any(
        g is not None and g.numel() and 0 < _wide(g).__abs__().max() < torch.finfo(g.dtype).tiny
        for g in grads
    )


def _assert_facts(
    row: Row,
    result: ClipResult,
    before: list[Array],
    ideal: list[Array],
    after: Grads,
) -> None:
    """The result says what happened: to the ideal values, or to the rounded ones if it looked."""
    judged = arrays_of(after) if row.elementwise else ideal
    facts = oracle.facts(before, judged, row.result_order)
    close: dict[str, Any] = {"rel": 1e-6, "abs": 1e-6}
    assert float(result.total_norm) == pytest.approx(facts.total_norm, rel=1e-9, abs=0)
    if row.steps > 1 and _is_subnormal(after):
        return  # the second step rounds what the first one measured, to a coarse grid
    if row.steps > 1:
        close = {"rel": 4 * _eps(after) + 1e-6, "abs": 4 * _eps(after) + 1e-6}
    assert float(result.clipped_norm) == pytest.approx(facts.clipped_norm, rel=close["rel"], abs=0)
    assert float(result.coef) == pytest.approx(facts.coef, **close)
    assert float(result.removed) == pytest.approx(facts.removed, **close)
    assert float(result.cosine) == pytest.approx(facts.cosine, **close)


@every_row
@each_case(finite=True)
def test_inside_the_limit_no_bit_changes(
    row: Row, backend: str, before: Grads, on_path: OnPath
) -> None:
    policy = row.policy(row.loose(arrays_of(before)))

    after, result = run(backend, on_path, before, policy)

    assert_same_bits(after, before)
    assert not bool(result.clipped)
    assert float(result.coef) == 1
    assert float(result.removed) == 0
    assert float(result.cosine) == 1


@pytest.mark.parametrize(
    "row", [_norm_row(p, "global") for p in (2.0, 1.0, math.inf)], ids=lambda row: row.label
)
@each_case(finite=True)
def test_exactly_at_the_limit_no_bit_changes(
    row: Row, backend: str, before: Grads, on_path: OnPath
) -> None:
    order = row.result_order
    _, measured = run(backend, on_path, before, by_norm(math.inf, order=order))
    limit = float(measured.total_norm)
    assert limit == pytest.approx(oracle.norm(arrays_of(before), order), rel=1e-12)

    after, result = run(backend, on_path, before, by_norm(limit, order=order))

    assert_same_bits(after, before)
    assert not bool(result.clipped)


@pytest.mark.parametrize("row", ROWS[:1], ids=["none"])
@each_case(finite=None)
def test_measuring_changes_nothing(
    row: Row,  # noqa: ARG001 - there is no policy here
    backend: str,
    before: Grads,
    on_path: OnPath,
) -> None:
    after, result = run(backend, on_path, before, None, "propagate")
    assert_same_bits(after, before)
    assert not bool(result.clipped)
    assert not bool(result.skipped)
    np.testing.assert_allclose(float(result.total_norm), oracle.norm(arrays_of(before)), 1e-9)
    each = [float(norm) for norm in result.norms]
    np.testing.assert_allclose(each, [oracle.norm([a]) for a in arrays_of(before)], 1e-9)


@every_row
@each_case(finite=False)
def test_skip_leaves_every_bit_and_says_so(
    row: Row, backend: str, before: Grads, on_path: OnPath
) -> None:
    after, result = run(backend, on_path, before, row.policy(0.5))
    assert_same_bits(after, before)
    assert bool(result.skipped)
    assert not bool(result.clipped)
    assert result.nonfinite == ("0",)
    assert not math.isfinite(float(result.total_norm))
    assert (float(result.coef), float(result.removed), float(result.cosine)) == (1, 0, 1)


@every_row
@each_case(finite=False)
def test_zero_puts_nought_for_what_is_not_finite_and_clips_the_rest(
    row: Row, backend: str, before: Grads, on_path: OnPath
) -> None:
    mended = [np.where(np.isfinite(a), a, 0) for a in arrays_of(before)]
    limit = row.binding(mended)
    after, result = run(backend, on_path, before, row.policy(limit), "zero")
    assert_near(after, row.ideal(mended, limit), before, row.steps)
    assert not bool(result.skipped)
    assert bool(result.clipped)


@every_row
@each_case(finite=False)
def test_raise_names_the_parameter_and_leaves_every_bit(
    row: Row, backend: str, before: Grads, on_path: OnPath
) -> None:
    given = given_to(backend, before)
    with pytest.raises(NonFiniteError, match=r"gradients? of 0 "):
        clip(backend, on_path, given, row.policy(0.5), "raise")
    assert_same_bits(grads_of(given), before)


@every_row
@each_case(finite=False)
def test_propagate_computes_on(row: Row, backend: str, before: Grads, on_path: OnPath) -> None:
    with np.errstate(invalid="ignore"):
        ideal = row.ideal(arrays_of(before), 0.5)
    after, result = run(backend, on_path, before, row.policy(0.5), "propagate")
    assert_near(after, ideal, before, row.steps)
    assert not bool(result.skipped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", _FULL, ids=str)
def test_complex_values_are_refused_by_value_and_nothing_changes(
    backend: str, dtype: torch.dtype, on_path: OnPath
) -> None:
    given = given_to(backend, list(reversed(_complex(dtype))))  # the real one must stay, too
    with pytest.raises(PolicyError, match=r"complex\d+.*clip.* by norm"):
        clip(backend, on_path, given, by_value(0.01))
    assert_same_bits(grads_of(given), list(reversed(_complex(dtype))))


@pytest.mark.parametrize("backend", PATHS)
def test_a_tied_parameter_counts_once(backend: str, on_path: OnPath) -> None:
    tied = _parameter(torch.tensor([3.0, 4.0]))
    with on_path(backend):
        result = Clipper([("encoder", tied), ("decoder", tied)], by_norm(1.0)).clip_()
    assert float(result.total_norm) == 5
    assert result.names == ("encoder",)
    assert tied.grad is not None
    np.testing.assert_allclose(tied.grad, [0.6, 0.8], rtol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_five_hundred_parameters(backend: str, on_path: OnPath) -> None:
    before: Grads = [_random(2, 3, dtype=torch.float32, seed=i) for i in range(500)]
    wide = arrays_of(before)
    for row in (ROWS[0], _norm_row(2.0, "tensor")):
        limit = row.binding(wide)
        after, result = run(backend, on_path, before, row.policy(limit))
        assert_near(after, row.ideal(wide, limit), before, row.steps)
        assert len(result.norms) == 500


@pytest.mark.parametrize("backend", ["kernel", "fallback"])
@pytest.mark.parametrize("name", ["transposed", "expanded", "sparse", "sparse-uncoalesced"])
def test_the_gradient_itself_stays_where_nothing_was_cut(
    backend: str, name: str, on_path: OnPath
) -> None:
    case = next(case for case in CASES if case.name == name)
    params = [_parameter(grad) for grad in case.build(torch.float32)]
    held = [param.grad for param in params]
    with on_path(backend):
        Clipper(params, by_norm(1e6)).clip_()
    assert all(param.grad is grad for param, grad in zip(params, held, strict=True))


@pytest.mark.parametrize("backend", ["kernel", "fallback"])
@pytest.mark.parametrize("name", ["ordinary", "transposed", "strided", "sparse"])
def test_clipping_writes_in_place(backend: str, name: str, on_path: OnPath) -> None:
    case = next(case for case in CASES if case.name == name)
    params = [_parameter(grad) for grad in case.build(torch.float32)]
    held = [param.grad for param in params]
    with on_path(backend):
        assert bool(Clipper(params, by_norm(0.1)).clip_().clipped)
    assert all(param.grad is grad for param, grad in zip(params, held, strict=True))


@pytest.mark.parametrize(
    ("backend", "prefix"), [("kernel", "c-"), ("fallback", "torch"), ("device", "torch")]
)
def test_the_result_says_what_ran(backend: str, prefix: str, on_path: OnPath) -> None:
    _, result = run(backend, on_path, _pair(torch.float32), by_norm(1.0))
    assert result.ran.startswith(prefix)


def test_the_path_of_a_mixture_says_so(on_path: OnPath) -> None:
    grads: Grads = [torch.ones(2), torch.ones(2, dtype=torch.complex64)]
    assert run("kernel", on_path, grads, by_norm(1.0))[1].ran.endswith("+torch")
