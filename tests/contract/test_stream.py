"""Every recipe on the same 200 steps, on every library: what is written once runs the same."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import gradclip.numpy
from conftest import OnPath
from contract.methods import ROWS
from gradclip import GradclipWarning
from gradclip.torch import Clipper
from stream import STEPS, Array, stream, weights

# A decomposition differs in its last bits from library to library.
LOOSE = {"spectral": 1e-11}

Step = tuple[list[Array], bool]


def by_numpy(policy: Any) -> list[Step]:
    state, steps = None, []
    for grads, loss in stream():
        out, state, result = gradclip.numpy.clip(grads, policy, state, weights=weights(), loss=loss)
        steps.append((out, bool(result.skipped)))
    return steps


def by_torch(policy: Any) -> list[Step]:
    params = [torch.nn.Parameter(torch.tensor(w)) for w in weights()]
    clipper = Clipper(params, policy, max_skips=STEPS)
    steps = []
    for grads, loss in stream():
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradclipWarning)
            result = clipper.clip_(loss=loss)
        out = [p.grad.numpy().copy() for p in params]  # type: ignore[union-attr]
        steps.append((out, bool(result.skipped)))
    return steps


def largest_gap(ours: list[Step], theirs: list[Step]) -> float:
    """Return the largest difference, relative to the step's largest value."""
    worst = 0.0
    for (a, skipped), (b, other) in zip(ours, theirs, strict=True):
        assert skipped == other
        if not skipped:
            scale = max(float(np.abs(x).max()) for x in b) or 1.0
            gap = max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
            worst = max(worst, gap / scale)
    return worst


@pytest.mark.parametrize("path", ["kernel", "fallback", "device"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.policy))
def test_torch_agrees_with_numpy(row: Any, path: str, on_path: OnPath) -> None:
    with on_path(path):
        found = by_torch(row.policy)
    assert largest_gap(found, by_numpy(row.policy)) < LOOSE.get(row.recipe, 1e-12)


def test_a_difference_would_be_seen() -> None:
    assert largest_gap(by_torch("norm:1.0"), by_numpy("norm:1.0000001")) > 1e-9
