"""The contract of every method: each row of `methods.ROWS`, on every backend, on every gradient.

test_clip.py judges the three oldest methods by an oracle, value for value; here is what holds for
all: what they keep, what they never do, and that they live on after inf and NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip.numpy
import oracle
from contract.backends import BACKENDS, DTYPES, Array, Arrays, start
from contract.methods import ROWS, Row
from gradclip import (
    ClipResult,
    PolicyError,
    autoclip,
    mean_std,
    moving_average,
    online_quantile,
    quantile,
)
from gradclip.method.catalogue import CATALOGUE
from stream import stream, weights

LOOSE = [row for row in ROWS if row.loose is not None]

# ---- the table of gradients ----------------------------------------------------------------

Build = Callable[[np.dtype[Any]], Arrays]
_32 = np.dtype(np.float32)


def _random(*shape: int, dtype: np.dtype[Any], seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def _pair(dtype: np.dtype[Any]) -> Arrays:
    return [_random(4, 3, dtype=dtype), _random(3, dtype=dtype, seed=1)]


def _spoiled(value: float) -> Build:
    def build(dtype: np.dtype[Any]) -> Arrays:
        grads = [g for g in _pair(dtype) if g is not None]
        grads[0][1, 2] = value
        return list(grads)

    return build


def _subnormal(dtype: np.dtype[Any]) -> Arrays:
    info = ml_dtypes.finfo(dtype)
    least = float(info.smallest_normal) * float(info.eps)  # The smallest number above 0.
    return [(least * np.arange(-6.0, 6).reshape(4, 3)).astype(dtype), np.zeros(3, dtype)]


def _huge(dtype: np.dtype[Any]) -> Arrays:
    size = min(1e25, float(ml_dtypes.finfo(dtype).max) / 64)
    return [np.full((4, 3), size).astype(dtype), np.full(3, -size / 2).astype(dtype)]


@dataclass(frozen=True)
class Case:
    """One kind of gradients.

    Attributes:
        everywhere: it is tried on each backend and dtype, not in float32 alone.
        usual: it has the shapes of most cases, which JAX compiles once.
    """

    name: str
    build: Build
    everywhere: bool = True
    usual: bool = True


FINITE = (
    Case("ordinary", _pair),
    Case("zero", lambda d: [np.zeros((4, 3), d), -np.zeros(3, d)]),
    Case("subnormal", _subnormal),
    Case("huge", _huge),
    Case("scalar", lambda d: [_random(dtype=d)], usual=False),
    Case("empty", lambda d: [np.zeros(0, d), np.zeros((3, 0), d)], False),
    Case("empty-beside-full", lambda d: [np.zeros((0, 2), d), _random(3, dtype=d)], usual=False),
    Case("one", lambda d: [_random(4, 3, dtype=d)], False),
    Case("transposed", lambda d: [_random(3, 4, dtype=d).T, _random(9, dtype=d)[::3]], False),
    Case("none-among", lambda d: [_random(4, 3, dtype=d), None, _random(3, dtype=d)], False),
    Case("none-at-all", lambda _: [None, None], False),
    Case("mixed", lambda _: [_random(4, 3, dtype=d) for d in DTYPES], False),
    Case("many", lambda d: list(_random(500, 2, dtype=d)), False),
)
FAULTS = (
    Case("inf", _spoiled(math.inf)),
    Case("minus-inf", _spoiled(-math.inf), False),
    Case("nan", _spoiled(math.nan)),
)


def _slow(backend: str, dtype: np.dtype[Any]) -> bool:
    return backend == "jax" and dtype != _32


def _place(backend: str, dtype: np.dtype[Any], slow: bool) -> Any:
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(backend, dtype, id=f"{backend}-{dtype}", marks=marks)


PLACES = [_place(b, d, _slow(b, d)) for b in BACKENDS for d in DTYPES]
NO_JAX = [_place(b, d, b == "jax") for b in BACKENDS for d in DTYPES]  # By default.

Check = Callable[[Row, str, Arrays], None]


CHECKS: list[tuple[Check, Sequence[Case]]] = []
"""Every check of the contract that runs on cases, which a method from elsewhere can be put to."""


def run_cases(check: Check, cases: Sequence[Case], row: Row, backend: str, dtype: Any) -> None:
    """Run a check on the cases that are tried on this backend and dtype.

    JAX takes half a second to compile a policy: by default it runs in float32, on usual shapes.
    """
    for case in cases:
        plain = dtype == _32 and backend != "jax"
        if plain or (case.everywhere and (case.usual or _slow(backend, dtype))):
            try:
                check(row, backend, case.build(dtype))
            except Exception as error:
                error.add_note(f"case: {case.name}")
                raise


def each_case(
    cases: Sequence[Case], places: Sequence[Any] = PLACES, rows: Sequence[Row] = ROWS
) -> Callable[[Check], Callable[..., None]]:
    """Run a check for every row, backend and dtype, and there on every case.

    The cases are one test, since there would be ten thousand; a note names the one that failed.
    """

    def make(check: Check) -> Callable[..., None]:
        CHECKS.append((check, cases))

        @pytest.mark.parametrize(("backend", "dtype"), places)
        @pytest.mark.parametrize("row", rows, ids=lambda row: str(row.policy))
        def test(row: Row, backend: str, dtype: np.dtype[Any]) -> None:
            run_cases(check, cases, row, backend, dtype)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return make


# ---- what is looked at ---------------------------------------------------------------------


def weights_for(grads: Arrays) -> Arrays:
    """Return weights of the gradients' shapes and dtypes."""
    made = [np.ones((4, 3), np.float32) if g is None else g for g in grads]
    return [_random(*g.shape, dtype=g.dtype, seed=9 + i) for i, g in enumerate(made)]


def begin(row: Row, backend: str, grads: Arrays, nonfinite: str = "skip") -> Any:
    return start(backend, weights_for(grads), row.policy, nonfinite)


def wide(grads: Arrays) -> list[oracle.Array]:
    """Return the gradients in float64; a missing one is empty."""
    return [np.zeros(0) if g is None else g.astype(np.float64) for g in grads]


def eps(grads: Arrays) -> float:
    """Return the coarsest relative step of the gradients' dtypes."""
    return max((float(ml_dtypes.finfo(dtype).eps) for dtype in _dtypes(grads)), default=0.0)


def _dtypes(grads: Arrays) -> set[np.dtype[Any]]:
    return {g.dtype for g in grads if g is not None}


def grain(grads: Arrays) -> float:
    """Return the largest step among the subnormal numbers of the gradients' dtypes."""
    infos = [ml_dtypes.finfo(dtype) for dtype in _dtypes(grads)]
    return max((float(i.smallest_normal) * float(i.eps) for i in infos), default=0.0)


def assert_same_bits(after: Arrays, before: Arrays, backend: str, *, sums: bool = False) -> None:
    """Refuse any change, of dtype, shape, or a bit; where `sums` added 0, -0 may be 0."""
    if backend == "jax":
        after, before = _flushed(after), _flushed(before)
    for now, was in zip(after, before, strict=True):
        assert (now is None) == (was is None)
        if now is not None and was is not None:
            assert (now.dtype, now.shape) == (was.dtype, was.shape)
            if sums:
                now, was = now + np.zeros_like(now), was + np.zeros_like(was)
            assert now.tobytes() == was.tobytes()


def assert_same_memory(one: Any, other: Any) -> None:
    for a, b in zip(one.memory(), other.memory(), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_sound(steps: Any) -> None:
    """Refuse a NaN that is remembered; a limit that is not known yet may be inf."""
    for array in steps.memory():
        assert not np.isnan(array).any(), "a NaN is remembered"


def assert_facts(result: ClipResult, before: Arrays, after: Arrays, backend: str) -> None:
    """Refuse a result that says anything else than what happened to the arrays."""
    if backend == "jax":
        before, after = _flushed(before), _flushed(after)
    facts = oracle.facts(wide(before), wide(after))
    exact = 1e-6 if backend == "jax" else 1e-12
    room = 4 * eps(before) + 1e-6
    assert float(result.total_norm) == pytest.approx(facts.total_norm, rel=exact, abs=0)
    count = sum(g.size for g in before if g is not None)
    coarse = grain(before) * math.sqrt(count)
    if coarse > room * min(facts.clipped_norm, facts.total_norm):
        return  # Rounded to the grid of the subnormal numbers: ratios of that say nothing.
    assert float(result.clipped_norm) == pytest.approx(facts.clipped_norm, rel=room, abs=0)
    assert float(result.coef) == pytest.approx(facts.coef, rel=room, abs=room)
    # In float32 a direction that hardly turned has a cosine of 1 - 6e-8: √2·√6e-8 is 3.5e-4.
    turned = 4e-4 if backend == "jax" else 0.0
    assert float(result.removed) == pytest.approx(facts.removed, rel=room, abs=room + turned)
    assert float(result.cosine) == pytest.approx(facts.cosine, abs=room)


def _flushed(grads: Arrays) -> Arrays:
    """Return what XLA reads on a CPU: subnormal numbers count as 0, but for halves."""
    whole = (g for g in grads if g is not None)
    return [
        g
        if g.dtype == np.float16
        else np.where(np.abs(g) < ml_dtypes.finfo(g.dtype).tiny, 0 * g, g)
        for g in whole
    ]


def assert_no_larger(after: Arrays, before: Arrays, *, each: bool) -> None:
    room = 1 + 4 * eps(after)
    for now, was in zip(wide(after), wide(before), strict=True):
        assert oracle.norm([now]) <= oracle.norm([was]) * room
        if each:
            assert (np.abs(now) <= np.abs(was) * room).all()
            assert (np.sign(now) * np.sign(was) >= 0).all()


# ---- the contract --------------------------------------------------------------------------


def test_every_recipe_has_a_row() -> None:
    missing = CATALOGUE.keys() - {row.recipe for row in ROWS}
    assert not missing, f"add a Row for {sorted(missing)} to ROWS in tests/contract/methods.py"


def test_a_rows_loose_policy_is_of_its_recipe() -> None:
    for row in LOOSE:
        assert row.loose is not None
        assert row.loose.call is not None
        assert row.loose.call.recipe == row.recipe


@each_case(FINITE)
def test_what_comes_out(row: Row, backend: str, before: Arrays) -> None:
    """Dtypes and shapes stay; finite stays finite, zero zero; and the result says what was done."""
    steps = begin(row, backend, before)
    for _ in range(1 if len(before) > 100 else 3):
        after, result = steps.step(before, loss=1.0)
        for now, was in zip(after, before, strict=True):
            assert (now is None) == (was is None)
            if now is not None and was is not None:
                assert (now.dtype, now.shape) == (was.dtype, was.shape)
                assert np.isfinite(now.astype(np.float64)).all()
                assert now.any() <= any(g is not None and g.any() for g in before)
        if bool(result.skipped):
            assert (float(result.coef), float(result.removed), float(result.cosine)) == (1, 0, 1)
            assert not bool(result.clipped)
            if backend == "jax":  # An update of nothing.
                assert not any(now.any() for now in after if now is not None)
                continue
        assert_facts(result, before, after, backend)
        if not bool(result.clipped):
            assert_same_bits(after, before, backend, sums=row.traits.carries)
        if not row.traits.enlarges:
            assert_no_larger(after, before, each=not row.traits.singular)
    assert_sound(steps)
    assert bool(steps.memory()) == row.traits.memory or all(g is None for g in before)


@each_case(FINITE, rows=LOOSE)
def test_within_the_limit_no_bit_changes(row: Row, backend: str, before: Arrays) -> None:
    assert row.loose is not None
    steps = start(backend, weights_for(before), row.loose)
    larger = [None if g is None else np.asarray(4 * g, g.dtype) for g in before]
    for grads in (larger, before):
        after, result = steps.step(grads, loss=1.0)
    assert_same_bits(after, before, backend, sums=row.traits.carries)
    assert not bool(result.clipped)
    assert not bool(result.skipped)
    assert (float(result.coef), float(result.removed), float(result.cosine)) == (1, 0, 1)


@each_case(FAULTS)
def test_a_skipped_step_leaves_no_trace(row: Row, backend: str, bad: Arrays) -> None:
    """Neither in the gradients nor in the memory, now or later."""
    assert bad[0] is not None
    good = _pair(bad[0].dtype)
    hit, spared = begin(row, backend, bad), begin(row, backend, bad)
    for steps in (hit, spared):
        steps.step(good, loss=1.0)
    after, result = hit.step(bad, loss=1.0)
    assert bool(result.skipped)
    assert not bool(result.clipped)
    assert not math.isfinite(float(result.total_norm))
    assert (float(result.coef), float(result.removed), float(result.cosine)) == (1, 0, 1)
    if backend == "jax":
        assert not any(g.any() for g in after if g is not None)
    else:
        assert_same_bits(after, bad, backend)
    assert_same_memory(hit, spared)
    for _ in range(2):
        one, other = (steps.step(good, loss=1.0)[0] for steps in (hit, spared))
        assert_same_bits(one, other, backend)
    assert_same_memory(hit, spared)
    assert_sound(hit)


@each_case(FAULTS, NO_JAX)
def test_nothing_nonfinite_is_remembered_when_it_is_let_through(
    row: Row, backend: str, bad: Arrays
) -> None:
    assert bad[0] is not None
    good = _pair(bad[0].dtype)
    steps = begin(row, backend, bad, "propagate")
    for grads in (good, bad, good, good):
        after, _ = steps.step(grads, loss=1.0)
    assert_sound(steps)
    for now in after:
        assert now is not None
        assert np.isfinite(now.astype(np.float64)).all()


@pytest.fixture
def always_warn() -> Iterator[None]:
    """PyTorch tells some things once in a process: here each time."""
    import torch

    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


ON_EACH = pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=[pytest.mark.slow] if b == "jax" else []) for b in BACKENDS]
)


def rows(found: Iterable[Row]) -> pytest.MarkDecorator:
    """Run a test on each of these rows."""
    return pytest.mark.parametrize("row", list(found), ids=lambda row: str(row.policy))


def _complex_pair() -> Arrays:
    return [_random(3, dtype=_32), (_random(4, 3, dtype=_32) + 1j).astype(np.complex64)]


@pytest.mark.usefixtures("always_warn")
@ON_EACH
@rows(row for row in ROWS if row.traits.real)
def test_what_orders_values_refuses_complex_gradients(row: Row, backend: str) -> None:
    before = _complex_pair()
    with pytest.raises(PolicyError, match=r"complex64.*clip.* by norm"):
        start(backend, before, row.policy).step(before, loss=1.0)


@pytest.mark.usefixtures("always_warn")
@ON_EACH
@rows(row for row in ROWS if not row.traits.real)
def test_norms_take_complex_gradients(row: Row, backend: str) -> None:
    before = _complex_pair()
    after, _ = start(backend, before, row.policy).step(before, loss=1.0)
    assert [a.dtype for a in after] == [np.float32, np.complex64]


@rows(row for row in ROWS if row.traits.weights)
def test_weights_are_asked_for(row: Row) -> None:
    with pytest.raises(PolicyError, match=r"weights=None is not usable: .* pass"):
        gradclip.numpy.clip(_pair(_32), row.policy)


@rows(row for row in ROWS if not row.traits.weights)
def test_other_methods_need_no_weights(row: Row) -> None:
    clipped, _, _ = gradclip.numpy.clip(_pair(_32), row.policy, loss=1.0)
    assert [g.shape for g in clipped] == [(4, 3), (3,)]


@pytest.mark.parametrize("backend", BACKENDS)
@rows(row for row in ROWS if row.traits.loss)
def test_the_loss_is_asked_for(row: Row, backend: str) -> None:
    with pytest.raises(PolicyError, match=r"loss=None is not usable: .*pass it"):
        begin(row, backend, _pair(_32)).step(_pair(_32))


@rows(row for row in ROWS if not row.traits.loss)
def test_other_methods_need_no_loss(row: Row) -> None:
    after, _ = begin(row, "numpy", _pair(_32)).step(_pair(_32))
    assert [g.shape for g in after] == [(4, 3), (3,)]


def _over_the_stream(row: Row, scale: float = 1.0) -> Iterator[tuple[Arrays, Arrays, ClipResult]]:
    """Yield the gradients before and after, and the result, of each step of the stream."""
    steps = start("numpy", list(weights()), row.policy)
    for given, loss in stream():
        grads = [scale * g for g in given]
        after, result = steps.step(list(grads), loss)
        yield list(grads), after, result


@rows(row for row in ROWS if row.traits.enlarges)
def test_what_may_enlarge_does(row: Row) -> None:
    assert any(
        oracle.norm(wide(after)) > oracle.norm(wide(before)) * (1 + 1e-9)
        for scale in (1.0, 0.01)
        for before, after, _ in _over_the_stream(row, scale)
    )


def _zeros_after_two_steps(row: Row) -> Arrays:
    """Return the output for gradients of zeros that follow two ordinary steps."""
    steps = begin(row, "numpy", _pair(_32))
    for _ in range(2):
        steps.step(_pair(_32), loss=1.0)
    return steps.step([np.zeros((4, 3), _32), np.zeros(3, _32)], loss=1.0)[0]


@rows(row for row in ROWS if row.traits.carries)
def test_what_carries_gives_something_for_zeros(row: Row) -> None:
    assert any(g is not None and g.any() for g in _zeros_after_two_steps(row))


@rows(row for row in ROWS if not row.traits.carries)
def test_other_methods_keep_zeros(row: Row) -> None:
    assert not any(g is not None and g.any() for g in _zeros_after_two_steps(row))


@rows(ROWS)
def test_what_skips_a_finite_step_says_so(row: Row) -> None:
    finite = [
        bool(result.skipped)
        for before, _, result in _over_the_stream(row)
        if all(g is not None and np.isfinite(g).all() for g in before)
    ]
    assert any(finite) == row.traits.skips


@pytest.mark.parametrize(
    "recipe",
    [autoclip, quantile, online_quantile, mean_std, moving_average],
    ids=lambda r: r.__name__,
)
@pytest.mark.parametrize("scope", ["element", "singular", "loss", "all"])
def test_a_statistic_is_of_norms_over_many_values(recipe: Any, scope: str) -> None:
    with pytest.raises(
        PolicyError, match=rf"scope='{scope}' is not usable: choose one of 'global'"
    ):
        recipe(scope=scope)
