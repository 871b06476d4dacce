"""Every adaptive method against an independent float64 implementation written from its paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradclip.numpy
from gradclip import (
    acclip,
    adagc,
    agc,
    aggc,
    autoclip,
    by_norm,
    centered,
    clip21,
    clippy,
    mean_std,
    moving_average,
    normalise,
    online_quantile,
    quantile,
    skip_outliers,
    smooth,
    spam,
    spectral,
    stable_spam,
    tanh,
    update_rms,
    with_feedback,
    zclip,
)
from reference import acclip as ref_acclip
from reference import adagc as ref_adagc
from reference import agc as ref_agc
from reference import aggc as ref_aggc
from reference import autoclip as ref_autoclip
from reference import centered as ref_centered
from reference import clip21 as ref_clip21
from reference import clippy as ref_clippy
from reference import mean_std as ref_mean_std
from reference import moving_average as ref_moving_average
from reference import normalise as ref_normalise
from reference import online_quantile as ref_online_quantile
from reference import quantile as ref_quantile
from reference import skip_zscore as ref_skip_zscore
from reference import smooth as ref_smooth
from reference import spam as ref_spam
from reference import spectral as ref_spectral
from reference import stable_spam as ref_stable_spam
from reference import uclip as ref_uclip
from reference import update_rms as ref_update_rms
from reference import zclip as ref_zclip
from stream import stream, weights

PAIRS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "autoclip": (autoclip(), ref_autoclip.Reference),
    "autoclip-window": (
        autoclip(25, window=16),
        lambda: ref_autoclip.Reference(25, window=16),
    ),
    "quantile": (quantile(0.5, 100), ref_quantile.Reference),
    "quantile-90": (quantile(0.9, 20), lambda: ref_quantile.Reference(0.9, 20)),
    "online-quantile": (online_quantile(), ref_online_quantile.Reference),
    "zclip": (zclip(), ref_zclip.Reference),
    "zclip-code": (zclip(max_norm=1.0), lambda: ref_zclip.Reference(max_norm=1.0)),
    "adagc": (adagc(), ref_adagc.Reference),
    "adagc-short": (adagc(warmup=10), lambda: ref_adagc.Reference(warmup=10)),
    "aggc": (aggc(0.5, 1.5), lambda: ref_aggc.Reference(low=0.5, high=1.5, groups=[[0, 1, 2]])),
    "aggc-code": (
        aggc(0.5, 1.5, current=False),
        lambda: ref_aggc.Reference(low=0.5, high=1.5, order="code", groups=[[0, 1, 2]]),
    ),
    "mean-std": (
        mean_std(3, warmup=2, clipped=False),
        lambda: ref_mean_std.Reference(3, window=10_000, remember="raw"),
    ),
    "moving-average": (
        moving_average(2, 0.99, warmup=1, clipped=False),
        ref_moving_average.Reference,
    ),
    "moving-average-clipped": (
        moving_average(2, 0.99, warmup=1),
        lambda: ref_moving_average.Reference(remember="clipped"),
    ),
    "spam": (spam(50, warmup=20), lambda: ref_spam.Reference(50, warmup=20)),
    "stable-spam": (stable_spam(), ref_stable_spam.Reference),
    "acclip": (acclip(), ref_acclip.Reference),
    "acclip-2": (acclip(2.0), lambda: ref_acclip.Reference(2.0)),
    "clippy": (clippy(), ref_clippy.Reference),
    "update-rms": (update_rms(), ref_update_rms.Reference),
    "agc": (agc(), ref_agc.Reference),
    "smooth": (smooth(1.0), ref_smooth.Reference),
    "smooth-linear": (smooth(1.0, "linear"), lambda: ref_smooth.Reference(form="linear")),
    "tanh": (tanh(1.0), lambda: ref_smooth.Reference(form="tanh")),
    "normalise": (normalise(), ref_normalise.Reference),
    "spectral": (spectral(0.5), lambda: ref_spectral.Reference(0.5)),
    "spectral-soft": (spectral(0.5, soft=True), lambda: ref_spectral.Reference(0.5, "soft")),
    "skip-outliers": (
        skip_outliers() | skip_outliers(of="loss"),
        ref_skip_zscore.Reference,
    ),
    "skip-outliers-short": (
        skip_outliers(4, window=16, minimum=8) | skip_outliers(4, 16, 8, of="loss"),
        lambda: ref_skip_zscore.Reference(4, 16, needs=8),
    ),
    "uclip": (with_feedback(by_norm(1.0)), ref_uclip.Reference),
    "clip21": (clip21(by_norm(1.0), 0.1, 0.1), ref_clip21.Reference),
    "centered": (centered(by_norm(1.0)), lambda: _OneWorker(ref_centered.Reference(1.0))),
}


class _OneWorker:
    """The reference of centered clipping takes a flat vector from each worker: here from one."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def step(
        self, grads: list[np.ndarray], _weights: Any, _loss: Any
    ) -> tuple[list[np.ndarray], bool]:
        out, skip = self._reference.step([np.concatenate([g.ravel() for g in grads])])
        if skip:
            return grads, True
        ends = np.cumsum([g.size for g in grads])[:-1]
        parts = np.split(out[0], ends)
        return [p.reshape(g.shape) for p, g in zip(parts, grads, strict=True)], False


def largest_difference(policy: Any, reference: Any, *, seed: int = 0) -> float:
    """Return the largest difference over the stream, relative to each step's largest value."""
    state, worst = None, 0.0
    for step, (grads, loss) in enumerate(stream(seed)):
        ours, state, result = gradclip.numpy.clip(
            grads, policy, state, weights=weights(), loss=loss
        )
        theirs, skip = reference.step([g.copy() for g in grads], weights(), loss)
        assert bool(result.skipped) == bool(skip), f"step {step}: one of the two skips"
        if skip:
            continue
        scale = max(float(np.abs(t).max()) for t in theirs) or 1.0
        gap = max(float(np.abs(o - t).max()) for o, t in zip(ours, theirs, strict=True))
        worst = max(worst, gap / scale)
    return worst


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_its_reference(name: str) -> None:
    policy, reference = PAIRS[name]
    assert largest_difference(policy, reference()) < 1e-12


@pytest.mark.parametrize("name", PAIRS)
def test_the_comparison_can_fail(name: str) -> None:
    """A method's reference rejects plain gradients: the two would differ if we did nothing."""
    _, reference = PAIRS[name]
    if name.startswith("skip"):
        pytest.skip("a skip rule changes no gradient; what it skips is compared step by step")
    assert largest_difference("none", reference()) > 1e-3
