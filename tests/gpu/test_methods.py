"""Every method gives on a card what it gives on a CPU, and reads nothing back."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from contract.methods import ROWS, Row
from gpu.places import PLACES, Place, nothing_is_read
from gradclip import ClipResult, GradclipWarning
from gradclip.torch import Clipper
from stream import stream, weights

STEPS = 12
NUMBERS = ("total_norm", "clipped_norm", "coef", "removed", "limit", "clipped", "skipped", "norms")
Grads = list[torch.Tensor]


def clipper_on(device: torch.device, row: Row, dtype: torch.dtype) -> Clipper:
    params = [torch.nn.Parameter(torch.tensor(w, dtype=dtype, device=device)) for w in weights()]
    return Clipper(params, row.policy, max_skips=1000)


def step(clipper: Clipper, grads: list[Any], loss: float) -> tuple[Grads, ClipResult]:
    for param, grad in zip(clipper.params, grads, strict=True):
        param.grad = torch.tensor(grad, dtype=param.dtype).to(param.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradclipWarning)  # A skip: the result says so too.
        result = clipper.clip_(loss=loss)
    return [p.grad.cpu() for p in clipper.params if p.grad is not None], result


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.policy))
def test_the_host_gives_the_same(row: Row, dtype: torch.dtype, place: Place) -> None:
    host, device = clipper_on(torch.device("cpu"), row, dtype), clipper_on(place.device, row, dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-9
    for grads, loss in islice(stream(), STEPS):
        expected, told = step(host, grads, loss)
        with place.turned():
            found, result = step(device, grads, loss)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * 1e-2)
        for name in NUMBERS:
            mine, theirs = (np.asarray(getattr(r, name).cpu(), float) for r in (result, told))
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol * 1e-2, err_msg=name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.policy))
def test_no_value_is_read_back(row: Row, place: Place) -> None:
    clipper = clipper_on(place.device, row, torch.float32)
    given = [
        [torch.tensor(g, dtype=torch.float32, device=place.device) for g in grads]
        for grads, _ in islice(stream(), 4)
    ]
    losses = [torch.tensor(1.0, device=place.device) for _ in given]
    for index, (grads, loss) in enumerate(zip(given, losses, strict=True)):
        for param, grad in zip(clipper.params, grads, strict=True):
            param.grad = grad
        with place.turned():
            if index == 0:  # The first step makes the memory.
                clipper.clip_(loss=loss)
                continue
            with nothing_is_read(place):
                clipper.clip_(loss=loss)
    assert clipper.steps == len(given)
