"""The drop-ins against torch.nn.utils: the same where torch is right, as documented elsewhere."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import gradclip.torch as ours
import oracle
from conftest import PATHS, OnPath
from gradclip import GradclipWarning, NonFiniteError, PolicyError
from gradclip.torch import (
    Clipper,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from grads import grad_of

theirs = torch.nn.utils
ORDERS = (0.5, 1, 1.5, 2, 4, math.inf, "inf")

every_order = pytest.mark.parametrize("norm_type", ORDERS, ids=str)
every_foreach = pytest.mark.parametrize("foreach", [None, True, False])


def _layer(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(10, 10)


def _ramp(layer: torch.nn.Linear) -> None:
    """Give the layer gradients of several sizes: 0.01 … 1.0, and a bias of one size."""
    layer.weight.grad = torch.arange(1.0, 101.0).view(10, 10) / 100
    layer.bias.grad = torch.ones(10) / 1000


def _params(*grads: Any) -> list[Tensor]:
    """Return parameters with these gradients."""
    made = []
    for grad in grads:
        value = grad if grad is None or isinstance(grad, Tensor) else torch.tensor(grad)
        shape, dtype = (3, None) if value is None else (value.shape, value.dtype)
        param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        param.grad = value
        made.append(param)
    return made


def _grads(params: Iterable[Tensor]) -> list[Any]:
    return [None if p.grad is None else p.grad.to_dense().tolist() for p in params]


# ---- torch's own cases, written anew -------------------------------------------------------


@every_order
@every_foreach
def test_the_norm_comes_down_to_max_and_the_direction_stays(
    norm_type: Any, foreach: bool | None, path: str
) -> None:
    layer = _layer()
    _ramp(layer)
    before = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    order = float(norm_type)
    expected = oracle.norm([g.double().numpy() for g in before], order)

    norm = clip_grad_norm_(layer.parameters(), 2, norm_type=norm_type, foreach=foreach)

    assert norm.shape == ()
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    after = [p.grad for p in layer.parameters() if p.grad is not None]
    left = oracle.norm([g.double().numpy() for g in after], order)
    assert left == pytest.approx(min(2.0, expected), rel=1e-6)
    scales = torch.cat([(a / b).flatten() for a, b in zip(after, before, strict=True)])
    assert float(scales.std()) < 3e-7 * float(scales.mean())
    assert path in PATHS


@every_order
@every_foreach
def test_a_small_gradient_stays_as_it_is(norm_type: Any, foreach: bool | None, path: str) -> None:
    layer = _layer()
    _ramp(layer)
    for param in layer.parameters():
        assert param.grad is not None
        param.grad.div_(500)
    before = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    norm = clip_grad_norm_(layer.parameters(), 1000, norm_type, foreach=foreach)
    assert 0 < float(norm) <= 1000
    assert all(map(torch.equal, before, [grad_of(p) for p in layer.parameters()])), path


@every_foreach
def test_parameters_without_gradients_are_passed_over(foreach: bool | None, path: str) -> None:
    params = _params([3.0, 4.0], None)
    assert float(clip_grad_norm_(params, 1.0, foreach=foreach)) == 5
    assert params[1].grad is None
    assert float(clip_grad_norm_([params[1]], 1.0, foreach=foreach)) == 0
    clip_grad_value_(params, 0.1, foreach=foreach)
    np.testing.assert_allclose(grad_of(params[0]), [0.1, 0.1], rtol=1e-7, err_msg=path)


@every_foreach
def test_a_single_tensor_and_a_generator_will_do(foreach: bool | None, path: str) -> None:
    (one,), (two,), three = _params([3.0, 4.0]), _params([3.0, 4.0]), _params([3.0], [4.0])
    norms = [
        clip_grad_norm_(one, 1.0, foreach=foreach),
        clip_grad_norm_([two], 1.0, foreach=foreach),
        clip_grad_norm_((p for p in three), 1.0, foreach=foreach),
    ]
    assert [float(norm) for norm in norms] == [5, 5, 5], path
    assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]
    assert torch.equal(one.grad, torch.cat([p.grad for p in three]))  # type: ignore[arg-type, misc]
    clip_grad_value_(one, 0.5, foreach=foreach)
    assert float(one.grad.max()) == 0.5  # type: ignore[union-attr]


@every_order
@every_foreach
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_error_if_nonfinite_raises_and_changes_nothing(
    norm_type: Any, foreach: bool | None, bad: float, path: str
) -> None:
    params = _params([1.0, bad], [2.0])
    before = [p.grad.clone() for p in params]  # type: ignore[union-attr]
    torchs = (
        f"The total norm of order {float(norm_type)} for gradients from `parameters` is "
        "non-finite, so it cannot be clipped. To disable this error and scale the gradients by "
        "the non-finite norm anyway, set `error_if_nonfinite=False`"
    )
    with pytest.raises(RuntimeError, match=re.escape(torchs)):
        theirs.clip_grad_norm_(_params([1.0, bad], [2.0]), 1.0, norm_type, True)
    with pytest.raises(RuntimeError, match=f"^{re.escape(torchs)}.* holds inf or NaN"):
        clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True, foreach=foreach)
    with pytest.raises(NonFiniteError):
        get_total_norm(before, norm_type, error_if_nonfinite=True, foreach=foreach)
    after = [p.grad for p in params]
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=path)


@every_order
@every_foreach
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_without_it_inf_and_nan_do_what_they_do_in_torch(
    norm_type: Any, foreach: bool | None, bad: float, path: str
) -> None:
    params, twins = _params([1.0, bad], [2.0]), _params([1.0, bad], [2.0])
    norm = clip_grad_norm_(params, 1.0, norm_type, False, foreach)
    reference = theirs.clip_grad_norm_(twins, 1.0, norm_type, False, foreach)
    torch.testing.assert_close(norm, reference, equal_nan=True)
    for a, b in zip(params, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True, msg=path)


@every_foreach
def test_values_are_clamped_and_those_inside_stay(foreach: bool | None, path: str) -> None:
    layer = _layer()
    _ramp(layer)
    layer.weight.grad = torch.arange(-50.0, 50.0).view(10, 10).div(5)
    clip_grad_value_(layer.parameters(), 2.5, foreach=foreach)
    expected = (torch.arange(-50.0, 50.0) / 5).clamp(-2.5, 2.5)
    assert torch.equal(layer.weight.grad.flatten(), expected), path
    assert torch.equal(layer.bias.grad, torch.ones(10) / 1000)  # type: ignore[arg-type]


@every_order
@every_foreach
def test_get_total_norm_and_clip_grads_with_norm_are_the_two_halves(
    norm_type: Any, foreach: bool | None, path: str
) -> None:
    whole, halves = _layer(), _layer()
    _ramp(whole)
    _ramp(halves)
    norm = clip_grad_norm_(whole.parameters(), 0.3, norm_type, foreach=foreach)
    grads = [p.grad for p in halves.parameters() if p.grad is not None]
    total = get_total_norm((g for g in grads), norm_type, foreach=foreach)
    ours.clip_grads_with_norm_(halves.parameters(), 0.3, total, foreach=foreach)
    assert float(norm) == float(total)
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-7, atol=0, msg=path)


@pytest.mark.parametrize("double", [False, True])
def test_complex_gradients_clip_as_their_real_pairs_do(double: bool, path: str) -> None:
    generator = torch.Generator().manual_seed(3)
    kind = torch.complex128 if double else torch.complex64
    complex_grad = torch.randn(7, 5, generator=generator, dtype=kind)
    pairs = torch.view_as_real(complex_grad).clone()
    (a,), (b,) = _params(complex_grad), _params(pairs)
    norm, reference = clip_grad_norm_([a], 0.5), clip_grad_norm_([b], 0.5)
    torch.testing.assert_close(norm, reference, rtol=1e-14 if double else 1e-7, atol=0, msg=path)
    torch.testing.assert_close(torch.view_as_real(a.grad), b.grad)  # type: ignore[arg-type]


# ---- parity on ordinary input --------------------------------------------------------------

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _pair(dtype: torch.dtype, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 8), (8,), (3, 3, 2), (1,), (4, 1)]
    grads = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return _params(*[g.clone() for g in grads]), _params(*[g.clone() for g in grads])


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_norm", [0.25, 1000.0])
def test_the_norm_drop_in_agrees_with_torch(
    norm_type: Any, dtype: torch.dtype, max_norm: float, path: str
) -> None:
    mine, twins = _pair(dtype, 5)
    norm = clip_grad_norm_(mine, max_norm, norm_type)
    reference = theirs.clip_grad_norm_(twins, max_norm, norm_type)
    # torch adds 1e-6 to the norm, and rounds the norm of halves to halves.
    close = max(5e-6, 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0)
    assert float(norm) == pytest.approx(float(reference), rel=close)
    for a, b in zip(mine, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=close, atol=1e-7, msg=path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip_value", [0.3, 1, 100.0, 0])
def test_the_value_drop_in_agrees_with_torch(
    dtype: torch.dtype, clip_value: float, path: str
) -> None:
    mine, twins = _pair(dtype, 6)
    assert clip_grad_value_(mine, clip_value) is None
    theirs.clip_grad_value_(twins, clip_value)
    for a, b in zip(mine, twins, strict=True):
        assert torch.equal(a.grad, b.grad), path  # type: ignore[arg-type]


@every_order
def test_the_total_norm_agrees_with_torch(norm_type: Any, path: str) -> None:
    mine, _ = _pair(torch.float32, 7)
    grads = [p.grad for p in mine if p.grad is not None]
    expected = theirs.get_total_norm(grads, norm_type)
    torch.testing.assert_close(get_total_norm(grads, norm_type), expected, rtol=1e-6, atol=0)
    single = get_total_norm(grads[0], norm_type)
    assert float(single) == pytest.approx(float(theirs.get_total_norm(grads[0], norm_type)), 1e-6)
    assert single.dtype == torch.float32, path


@pytest.mark.parametrize(
    "name", ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]
)
def test_the_signature_is_torchs(name: str) -> None:
    def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(inspect.unwrap(function)).parameters.values()
        # What torch does not have comes after all, and by name only.
        ours_too = [p for p in found if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return [(p.name, p.default, p.kind) for p in ours_too]

    assert shape(getattr(ours, name)) == shape(getattr(theirs, name))


# ---- the edges, row by row -----------------------------------------------------------------

INF, NAN = math.inf, math.nan


def _norm(params: list[Tensor], max_norm: float, norm_type: Any = 2.0, **more: Any) -> Any:
    norm = clip_grad_norm_(params, max_norm, norm_type, **more)
    return float(norm), _grads(params)


def _close(found: Any, expected: Any) -> None:
    """Compare nested lists of numbers, NaN to NaN."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6, atol=0)


def _one_inf(_: str) -> None:
    _close(_norm(_params([INF, 1.0], [2.0]), 1.0)[1], [[NAN, 0.0], [0.0]])


def _one_nan(_: str) -> None:
    _close(_norm(_params([NAN, 1.0], [2.0]), 1.0)[1], [[NAN, NAN], [NAN]])


def _finite_1e25(_: str) -> None:
    norm, grads = _norm(_params([1e25, -1e25]), 1.0)
    assert norm == pytest.approx(math.sqrt(2) * 1e25, rel=1e-6)
    _close(grads, [[0.5**0.5, -(0.5**0.5)]])


def _halves_of_300(_: str) -> None:
    (param,) = _params(torch.full((70_000,), 300.0, dtype=torch.float16))
    norm = clip_grad_norm_([param], 1000.0)
    assert float(norm) == pytest.approx(300 * math.sqrt(70_000), rel=1e-6)
    assert param.grad is not None
    left = oracle.norm([param.grad.double().numpy()])
    assert left == pytest.approx(1000, rel=2**-10)


def _tiny(_: str) -> None:
    norm, grads = _norm(_params([1e-30, 1e-30]), 1e-31)
    assert norm == pytest.approx(math.sqrt(2) * 1e-30, rel=1e-6)
    _close(grads, [[0.5**0.5 * 1e-31] * 2])


def _log_only(_: str) -> None:
    norm, grads = _norm(_params([INF, 1.0]), INF)
    assert norm == INF
    assert grads == [[INF, 1.0]]
    norm, grads = _norm(_params([1e25, 1e25]), INF)
    assert norm == pytest.approx(math.sqrt(2) * 1e25, rel=1e-6)
    _close(grads, [[1e25, 1e25]])


def _bfloat16(_: str) -> None:
    params = _params(torch.full((1000,), 0.1, dtype=torch.bfloat16))
    norm = clip_grad_norm_(params, INF)
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(math.sqrt(1000) * 0.10009765625, rel=1e-6)


def _negative_max_norm(_: str) -> None:
    params = _params([3.0, 4.0])
    with pytest.raises(PolicyError, match="max_norm=-1 is not usable: give a number >= 0"):
        clip_grad_norm_(params, -1)
    assert _grads(params) == [[3.0, 4.0]]


def _order_zero(_: str) -> None:
    params = _params([3.0, 4.0])
    with pytest.raises(PolicyError, match=r"norm_type=0\.0 is not usable: give a number > 0"):
        clip_grad_norm_(params, 1.0, norm_type=0)
    assert _grads(params) == [[3.0, 4.0]]


def _twice(_: str) -> None:
    (param,) = _params([3.0, 4.0])
    norm, grads = _norm([param, param], 1.0)
    assert norm == 5
    _close(grads[:1], [[0.6, 0.8]])
    clip_grad_value_([param, param], 0.5)
    _close(_grads([param]), [[0.5, 0.5]])


def _tiny_max_norm(_: str) -> None:
    _, grads = _norm(_params([1e-6, 0.0]), 1e-7)
    _close(grads, [[1e-7, 0.0]])


def _at_the_limit(_: str) -> None:
    _, grads = _norm(_params([3.0, 4.0]), 5.0)
    assert grads == [[3.0, 4.0]]


def _empty_with_inf(_: str) -> None:
    norm, grads = _norm(_params(torch.zeros(0), [3.0]), 1.0, INF)
    assert norm == 3
    assert grads == [[], [1.0]]
    assert _norm(_params(torch.zeros(0)), 1.0, INF) == (0.0, [[]])


def _sparse_norm(_: str) -> None:
    index = torch.tensor([[0, 2, 2]])
    values = torch.tensor([[3.0], [1.0], [3.0]])  # the duplicate adds up to 4
    sparse = torch.sparse_coo_tensor(index, values, (4, 1), check_invariants=True)
    norm, grads = _norm(_params(sparse), 1.0)
    assert norm == 5
    _close(grads, [[[0.6], [0], [0.8], [0]]])
    (param,) = _params(sparse.clone())
    clip_grad_value_([param], 2.0)
    assert _grads([param]) == [[[2.0], [0], [2.0], [0]]]


def _complex_value(_: str) -> None:
    params = _params([3.0], torch.tensor([1 + 1j]))
    with pytest.raises(PolicyError, match=r"torch.complex64.*clip by norm"):
        clip_grad_value_(params, 0.5)
    assert _grads(params) == [[3.0], [1 + 1j]]


def _float8(_: str) -> None:
    params = _params(torch.tensor([3.0, 4.0]).to(torch.float8_e4m3fn))
    norm = clip_grad_norm_(params, 1.0)
    assert float(norm) == 5
    found = params[0].grad
    assert found is not None
    assert found.dtype == torch.float8_e4m3fn
    _close([found.float().tolist()], [[0.625, 0.8125]])  # the nearest that there are
    clip_grad_value_(params, 0.75)
    _close([found.float().tolist()], [[0.625, 0.75]])


def _beyond_float32(_: str) -> None:
    norm, grads = _norm(_params([3e38, 3e38]), 1.0)
    assert norm == INF
    _close(grads, [[0.5**0.5, 0.5**0.5]])
    params = _params(torch.ones(10_000))
    assert float(clip_grad_norm_(params, 1.0, 0.1)) == INF
    np.testing.assert_allclose(grad_of(params[0]), 1e-40, rtol=1e-4)
    assert float(get_total_norm([torch.full((2,), 3e38)])) == INF


def _shared(_: str) -> None:
    a, b = _params([3.0, 4.0], [3.0, 4.0])
    b.grad = a.grad
    norm, grads = _norm([a, b], 1.0)
    assert norm == pytest.approx(50**0.5)
    _close(grads, [[3 / 50**0.5, 4 / 50**0.5]] * 2)
    (wide,) = _params(torch.ones(1).expand(4))
    _close(_norm([wide], 1.0)[1], [[0.5] * 4])


def _bound_beyond_half(_: str) -> None:
    for clip in (
        clip_grad_value_,
        lambda p, c: Clipper(p, f"value:{c}", nonfinite="propagate").clip_(),
    ):
        params = _params(torch.tensor([INF, -INF, 1.0, NAN], dtype=torch.float16))
        clip(params, 1e5)
        _close(_grads(params), [[65504.0, -65504.0, 1.0, NAN]])


def _whole_numbers(_: str) -> None:
    param = torch.nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    param.grad = torch.ones(2, dtype=torch.int64)
    params = [*_params([3.0, 4.0]), param]
    with pytest.raises(PolicyError, match="holds floats"):
        clip_grad_norm_(params, 1.0)
    assert _grads(params) == [[3.0, 4.0], [1, 1]]


def _negated(path: str) -> None:
    if path == "device":
        return  # A graph that is being compiled does not ask: torch's compiler sees to it.
    (param,) = _params([0.0, 0.0])
    param.grad = torch.tensor([3.0 - 3.0j, -1.0 + 1.0j]).conj().imag  # Negated lazily: [3, -1].
    assert param.grad.is_neg()
    assert _grads([param]) == [[3.0, -1.0]]
    Clipper([param], "value:-0.5,2").clip_()
    assert _grads([param]) == [[2.0, -0.5]]


EDGES: list[tuple[str, str, str, Callable[[str], None]]] = [
    # input, what torch does, what we do, the check
    ("one inf element", "that one NaN, the rest 0", "the same; a Clipper skips", _one_inf),
    ("one NaN", "every gradient NaN", "the same; a Clipper skips", _one_nan),
    ("finite float32 1e25", "norm inf, all 0", "the norm is right, clipped", _finite_1e25),
    ("70k float16 of 300", "norm inf, all 0", "the norm is right, clipped", _halves_of_300),
    ("1e-30, max_norm 1e-31", "norm 0, result 0", "the norm is right, clipped", _tiny),
    ("max_norm=inf, inf or 1e25", "NaN", "only measures: no bit changes", _log_only),
    ("all bfloat16", "a bfloat16 norm", "a float32 norm", _bfloat16),
    ("max_norm=-1", "flips every sign", "PolicyError, nothing changed", _negative_max_norm),
    ("norm_type=0", "counts tensors", "PolicyError, nothing changed", _order_zero),
    ("the same parameter twice", "counted and scaled twice", "counts once", _twice),
    ("max_norm=1e-7", "6x too small", "exact: no 1e-6 is added", _tiny_max_norm),
    ("norm exactly max_norm", "changed", "no bit changes", _at_the_limit),
    ("empty tensor, inf norm", "RuntimeError", "norm 0", _empty_with_inf),
    ("sparse", "NotImplementedError", "clipped by norm and by value", _sparse_norm),
    ("complex by value", "NotImplementedError", "PolicyError, nothing changed", _complex_value),
    ("norm beyond float32", "inf, all 0", "inf, clipped rightly", _beyond_float32),
    ("a shared gradient", "scaled twice, or an error", "scaled once", _shared),
    ("inf, bound beyond half", "RuntimeError", "the largest half", _bound_beyond_half),
    ("whole numbers", "RuntimeError", "PolicyError, nothing changed", _whole_numbers),
    ("lazily negated", "clamped rightly", "the same", _negated),
    ("float8", "NotImplementedError", "clipped by norm and by value", _float8),
]


@pytest.mark.parametrize("edge", EDGES, ids=[row[0] for row in EDGES])
def test_edge(edge: tuple[str, str, str, Callable[[str], None]], path: str) -> None:
    *_, check = edge
    check(path)


def test_float64_beyond_the_root_of_its_range_is_finite(path: str) -> None:
    """Torch's own test wants ±2e200 to count as non-finite; their norm is 2.8e200."""
    params = _params(torch.tensor([2e200, -2e200], dtype=torch.float64))
    norm = clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert norm.dtype == torch.float64
    assert float(norm) == pytest.approx(math.sqrt(8) * 1e200, rel=1e-15), path
    np.testing.assert_allclose(grad_of(params[0]), [0.5**0.5, -(0.5**0.5)], rtol=1e-15)


def test_a_wrong_clip_value_is_refused(path: str) -> None:
    params = _params([3.0, 4.0])
    for wrong, told in [(-1.0, "clip_value=-1.0"), (NAN, "clip_value=nan"), ("1", "'1'")]:
        with pytest.raises(PolicyError, match=told):
            clip_grad_value_(params, wrong)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="max_norm=nan"):
        ours.clip_grads_with_norm_(params, NAN, torch.tensor(5.0))
    assert _grads(params) == [[3.0, 4.0]], path


def test_an_empty_generator_is_told() -> None:
    used_up = iter(())
    with pytest.warns(GradclipWarning, match="no parameters: a generator"):
        norm = clip_grad_norm_(used_up, 1.0)
    assert float(norm) == 0
    with warnings.catch_warnings():  # torch says nothing of parameters without gradients
        warnings.simplefilter("error")
        clip_grad_norm_(_params(None), 1.0)


def test_a_norm_beyond_float64_is_inf_and_no_crash(path: str) -> None:
    """P = 1e-4 over two equal values is 2^10000."""
    assert float(get_total_norm([torch.ones(2)], 1e-4)) == INF, path
    assert float(get_total_norm([torch.ones(1), torch.ones(1)], 1e-4)) == INF


# ---- torch.compile, and no reading back ----------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "max_norm"), [("aot_eager", 0.5), ("aot_eager", 1e6), ("inductor", 0.5)]
)
def test_the_drop_ins_compile_in_one_graph(backend: str, max_norm: float) -> None:
    torch._dynamo.reset()

    def both(params: list[Tensor]) -> Tensor:
        norm = clip_grad_norm_(params, max_norm)
        clip_grad_value_(params, 0.05)
        return norm

    mine, twins = _pair(torch.float32, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # inductor's own imports
        norm = torch.compile(both, fullgraph=True, backend=backend)(mine)
    expected = both(twins)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    for a, b in zip(mine, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("number_of_values", [1, 2])
def test_a_limit_that_is_a_tensor_is_its_number(path: str, number_of_values: int) -> None:
    limit = torch.full((number_of_values,), 0.5)
    for clip in (clip_grad_norm_, clip_grad_value_):
        mine, twins = _pair(torch.float32, 8)
        if number_of_values > 1:
            with pytest.raises(PolicyError, match="one value"):
                clip(mine, limit)
            continue
        clip(mine, limit)
        clip(twins, 0.5)
        for a, b in zip(mine, twins, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
        if path != "device":  # There nobody looks.
            with pytest.raises(PolicyError, match=">= 0"):
                clip(mine, torch.tensor(-1.0))


def test_a_limit_that_is_a_tensor_compiles_once() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def both(params: list[Tensor], limit: Tensor) -> Tensor:
        norm = clip_grad_norm_(params, limit)
        clip_grads_with_norm_(params, limit / 2, norm)
        clip_grad_value_(params, limit / 4)
        return norm

    compiled = torch.compile(both, fullgraph=True, backend=counter)
    mine, _ = _pair(torch.float32, 8)
    for limit in (0.5, 0.25, 1e6):
        fresh, twins = _pair(torch.float32, 8)
        for a, b in zip(mine, fresh, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            a.grad.copy_(b.grad)
        norm, expected = compiled(mine, torch.tensor(limit)), both(twins, torch.tensor(limit))
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        for a, b in zip(mine, twins, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)
    assert counter.frame_count == 1


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: a value that is read back."""

    WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.name().partition(".")[0] in self.WAITS:
            self.found[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_the_counter_of_reads_can_count() -> None:
    with Reads() as reads:
        float(torch.ones(()))
        assert bool(torch.ones(()) > 0)
    assert sum(reads.found.values()) == 2


@pytest.mark.parametrize("grad", [[3.0, 4.0], [INF, 1.0]], ids=["finite", "inf"])
def test_the_drop_ins_read_nothing_back(grad: list[float], on_path: OnPath) -> None:
    params = _params(grad, [[1.0], [2.0]], torch.ones(3, dtype=torch.bfloat16))
    with on_path("device"), Reads() as reads:
        total = get_total_norm([p.grad for p in params if p.grad is not None])
        ours.clip_grads_with_norm_(params, 1.0, total)
        for norm_type in (1, 2, 7.0, INF):
            clip_grad_norm_(params, 1.0, norm_type)
        clip_grad_value_(params, 0.1)
    assert not reads.found


POLICIES = [
    "norm:1",
    "norm:1,order=inf",
    "norm:1,order=7",
    "norm:1,order=rms",
    "norm:1,scope=tensor",
    "norm:0.1,scope=unit",
    "value:0.1",
    "value:min=-0.1",
    "floor:9",
    "value:1|norm:1",
    "0=norm:0.5;*=value:0.1",
    "none",
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("nonfinite", ["skip", "zero", "propagate"])
def test_a_clipper_reads_nothing_back(policy: str, nonfinite: Any, on_path: OnPath) -> None:
    params = _params([3.0, 4.0], [[1.0], [2.0]], torch.ones(3, dtype=torch.bfloat16), None)
    with on_path("device"):
        clipper = Clipper(params, policy, nonfinite=nonfinite)
        with Reads() as reads:
            for _ in range(5):
                clipper.clip_()
    assert not reads.found
    assert clipper.last is not None
    assert clipper.steps == 5


def test_a_clipper_looks_at_its_skips_once_in_a_while(on_path: OnPath) -> None:
    """Every max_skips + 1 steps one number is read, so that a run of bad steps does end."""
    params = _params([NAN])
    with on_path("device"):
        clipper = Clipper(params, "norm:1", max_skips=4)
        with Reads() as reads:
            for _ in range(4):
                clipper.clip_()
        assert not reads.found
        with pytest.raises(NonFiniteError, match=r"5 steps in a row .*max_skips=4"):
            clipper.clip_()
