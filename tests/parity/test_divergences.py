"""The table of divergences from torch, row by row: what its second column says of this torch.

`test_torch_dropins.py` checks the third column. A row without an entry here fails, and so does an
entry without a row. Of the rows that need several processes only our side is checked, elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

PAGE = Path(__file__).parents[2] / "docs" / "divergences.md"


def _param(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    param = torch.nn.Parameter(torch.zeros(len(values), dtype=dtype))
    param.grad = torch.tensor(values, dtype=dtype)
    return param


def _grad(param: Tensor) -> Any:
    assert param.grad is not None
    return param.grad.to_dense().tolist()


def _of(grad: Tensor) -> Tensor:
    param = torch.nn.Parameter(torch.zeros(grad.shape).to(grad.dtype), requires_grad=False)
    param.grad = grad
    return param


def _at_the_limit() -> None:
    for values in ((3.0, 4.0), (3.0, 4.0 - 2e-6)):
        param = _param(*values)
        clip_grad_norm_([param], 5.0)
        assert _grad(param) != list(values)


def _tiny_limit() -> None:
    param = _param(2e-7, 0.0)
    clip_grad_norm_([param], 1e-7)
    assert 1e-7 / _grad(param)[0] == pytest.approx(6, rel=0.01)


def _finite_squares() -> None:
    for param in (_param(1e25, 1e25), _param(*[300.0] * 70_000, dtype=torch.float16)):
        assert float(clip_grad_norm_([param], 1.0)) == math.inf
        assert not any(_grad(param))


def _double() -> None:
    param = _param(2e200, -2e200, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_([param], 1.0, error_if_nonfinite=True)


def _underflow() -> None:
    param = _param(1e-30, 1e-30)
    assert float(clip_grad_norm_([param], 1e-31)) == 0
    assert max(map(abs, _grad(param))) < 1e-50 or _grad(param) == [0.0, 0.0]


def _log_only() -> None:
    param = _param(math.inf, 1.0)
    clip_grad_norm_([param], math.inf)
    assert all(map(math.isnan, _grad(param)))


def _halves() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert clip_grad_norm_([_param(1.0, dtype=dtype)], 1.0).dtype == dtype


def _negative_limit() -> None:
    param = _param(3.0, -4.0)
    clip_grad_norm_([param], -1.0)
    assert [g < 0 for g in _grad(param)] == [True, False]


def _order_zero() -> None:
    assert float(clip_grad_norm_([_param(3.0, 4.0), _param(2.0)], 1.0, 0)) == 2
    assert float(clip_grad_norm_([_param(3.0, -4.0)], 1.0, -math.inf)) == 3


def _twice() -> None:
    param = _param(3.0, 4.0)
    assert float(clip_grad_norm_([param, param], 1.0)) == pytest.approx(50**0.5)
    assert math.hypot(*_grad(param)) == pytest.approx(5 / 50)


def _empty() -> None:
    with pytest.raises(RuntimeError):
        clip_grad_norm_([_param(), _param(3.0)], 1.0, math.inf)


def _beyond_float32() -> None:
    param = _param(3e38, 3e38)
    assert float(clip_grad_norm_([param], 1.0)) == math.inf
    assert _grad(param) == [0.0, 0.0]


def _shared() -> None:
    a, b = _param(3.0, 4.0), _param(3.0, 4.0)
    b.grad = a.grad
    clip_grad_norm_([a, b], 1.0)
    assert math.hypot(*_grad(a)) == pytest.approx(5 / 50)
    with pytest.raises(RuntimeError, match="single memory location"):
        clip_grad_norm_([_of(torch.ones(1).expand(4))], 1.0)


def _sparse() -> None:
    param = _of(torch.tensor([3.0, 0.0]).to_sparse())
    with pytest.raises(NotImplementedError):
        clip_grad_norm_([param], 1.0)


def _float8() -> None:
    for clip in (clip_grad_norm_, clip_grad_value_):
        with pytest.raises(NotImplementedError):
            clip([_of(torch.ones(2).to(torch.float8_e4m3fn))], 1.0)


def _whole_numbers() -> None:
    with pytest.raises(RuntimeError):
        clip_grad_norm_([_of(torch.ones(2, dtype=torch.int64))], 1.0)


def _bound_beyond_half() -> None:
    with pytest.raises(RuntimeError):
        clip_grad_value_([_param(math.inf, dtype=torch.float16)], 1e5)


def _subnormal() -> None:
    param = _param(3e-45, 1.0)
    clip_grad_norm_([param], 0.1)
    assert _grad(param)[0] == 0


def _complex() -> None:
    for foreach in (False, None):
        with pytest.raises((NotImplementedError, RuntimeError)):
            clip_grad_value_([_of(torch.ones(2) + 1j)], 1.0, foreach=foreach)


def _no_parameters() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clip_grad_norm_([], 1.0)
    assert not seen
    with pytest.warns(UserWarning, match="generator"):
        clip_grad_norm_((param for param in ()), 1.0)


def _foreach() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        clip_grad_norm_([_of(torch.ones(2, device="meta"))], 1.0, foreach=True)


ROWS: dict[str, Callable[[], None] | str] = {
    "norm at or a little under `max_norm`": _at_the_limit,
    "`max_norm=1e-7`": _tiny_limit,
    "finite float32 1e25; 70,000 float16 values of 300": _finite_squares,
    "finite float64 ±2e200": _double,
    "gradients 1e-30 with `max_norm=1e-31`": _underflow,
    "`max_norm=inf` with an inf gradient, to log the norm": _log_only,
    "bfloat16 or float16 gradients": _halves,
    "`max_norm=-1`, NaN": _negative_limit,
    "`norm_type` 0 or negative": _order_zero,
    "a parameter listed twice": _twice,
    "an empty tensor with the inf norm": _empty,
    "norm beyond float32": _beyond_float32,
    "a gradient tensor that two parameters share, or that overlaps itself": _shared,
    "sparse gradients": _sparse,
    "float8 gradients": _float8,
    "gradients of whole numbers": _whole_numbers,
    "`clip_value` beyond the gradient's dtype, an inf value": _bound_beyond_half,
    "a result under the dtype's smallest normal number": _subnormal,
    "complex gradients by value": _complex,
    "an iterable without parameters": _no_parameters,
    # These need several processes: where our side of them is checked. Torch's is not.
    "DTensors mixed with plain tensors, or of several meshes": "distributed/edges_worker.py",
    "DTensors": "distributed/edges_worker.py",
    "a model that is spread over groups (pipeline, experts)": "distributed/edges_worker.py",
    "`foreach=True` where it is not supported": _foreach,
}


def _inputs() -> list[str]:
    """Return the first column of the first table."""
    text = PAGE.read_text(encoding="utf-8").split("## From the papers")[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_row_of_the_table_has_a_check() -> None:
    assert _inputs() == list(ROWS)


@pytest.mark.parametrize("row", [name for name, check in ROWS.items() if callable(check)])
def test_torch_does_what_the_row_says(row: str) -> None:
    check = ROWS[row]
    assert callable(check)
    check()
