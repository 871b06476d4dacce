"""Writes the figures of the docs: SVG, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from . import evidence_figures as shown
from . import explained_figures as explained
from .drawing import STYLE
from .store import Store

__all__ = ["FOLDER", "draw_all"]

FOLDER = Path(__file__).resolve().parents[1] / "docs/images/experiments"

FIGURES = {
    "long-sequences": shown.long_sequences,
    "learning-rates": shown.learning_rates,
    "test-error": shown.test_error,
    "depth": shown.depth_profiles,
    "normalised": shown.normalised,
    "threshold": shown.thresholds,
    "information": shown.resting_places,
    "batch-size": shown.batch_sizes,
    "spikes": shown.planted_spikes,
    "privacy": shown.private,
    "fixed-point": explained.fixed_point,
    "ghost-norms": explained.ghost_norms,
    "norm-and-value": explained.norm_and_value,
    "loss-scale": explained.loss_scale,
}


def draw_all(store: Store) -> dict[str, str]:
    """Write every figure that has results; return the description of each, by name."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    told = {}
    for name, draw in FIGURES.items():
        with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are a list of texts
            figure = Figure(figsize=(7.2, 3.8), layout="constrained")
            alt = draw(store, figure)
            if alt:
                path = FOLDER / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None, "Creator": None})
                told[name] = alt
    return told
