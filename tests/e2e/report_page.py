"""A report in a real browser: a record to show, and what can be seen of a page."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gradclip.record import RecordWriter

PIL_Image = pytest.importorskip("PIL.Image")
CHROMIUM = shutil.which("chromium")

EVIL = "<script>alert(1)</script>"
EVIL_IMAGE = "<img src=x onerror=alert(2)>"
TEX = "$$\\frac{1}{2}$$"  # Bokeh would fetch MathJax for it
LAYERS = ("embed.weight", EVIL, EVIL_IMAGE, TEX, "@norm{safe}", "head.bias")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def write_run(path: Path, limit: float | None, steps: int = 300) -> Path:
    """Write a run like a character LSTM's: bursts of the norm; unclipped, it diverges."""
    rng = np.random.default_rng(0)
    policy = None if limit is None else f"norm:{limit}"
    with RecordWriter(path, policy=policy, command=["train.py", EVIL]) as record:
        record.optimizer("SGD", [(name, (8, 8), "float32") for name in LAYERS], policy=policy)
        record.event("script-clips", f"The script clips {EVIL} by itself.", step=3)
        for step in range(1, steps + 1):
            burst = 6 * np.exp(-((step % 90 - 50) ** 2) / 30)
            norms = np.exp(rng.normal(-1.5, 0.3, len(LAYERS)) + 0.4 * burst)
            loss = 1.6 + 3 * math.exp(-step / 80) + 0.05 * rng.normal()
            norm, bad = float(np.linalg.norm(norms)), []
            if limit is None and step > 240:
                loss, norm, norms[:4], bad = math.nan, math.inf, math.nan, list(LAYERS[:4])
            if limit is not None and step == 100:
                norm, norms[1], bad = math.inf, math.inf, [EVIL]
            after = norm if limit is None or not math.isfinite(norm) else min(norm, limit)
            coef = after / norm if math.isfinite(norm) else None
            record.step(
                step=step, loss=loss, lr=1.0, norm=norm, clipped_norm=after, limit=limit,
                coef=coef, removed=None if coef is None else 1 - coef, clipped=after < norm,
                skipped=limit is not None and bool(bad), nonfinite=bad, norms=norms,
            )  # fmt: skip
    return path


class Opened(NamedTuple):
    page: Any
    told: list[str]
    """What the console said in earnest, and what scripts from names did."""
    asked: list[str]
    """Requests that were no part of the file; each was refused."""


def pixels(page, name: str) -> np.ndarray:
    """Return what a panel's figure looks like, shape (height, width, 3)."""
    plot = page.locator(f"section[aria-labelledby='h-{name}'] .plot")
    page.wait_for_timeout(150)  # one frame after the last change
    return np.asarray(PIL_Image.open(io.BytesIO(plot.screenshot())).convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: str) -> int:
    """Return the number of pixels near `colour`."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=2) < 12).sum())


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
