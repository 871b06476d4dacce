"""Turn a step row of a record into the names and numbers for the sinks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SCALARS", "Counts", "scalars"]

SCALARS = {
    "grad_norm/pre": "the norm before clipping",
    "grad_norm/post": "the norm after clipping",
    "grad_norm/limit": "the limit in force; left out where there is none, or several",
    "clip/coef": "the clip coefficient; 1 for an untouched gradient",
    "clip/removed": "the share of the gradient's norm that was cut",
    "clip/cosine": "the cosine of the clipped to the raw gradient",
    "clip/rate": "the share of the steps so far that were clipped",
    "clip/skipped": "how many steps so far were skipped",
    "clip/nonfinite": "how many steps so far had a gradient with inf or NaN",
    "loss": "the loss; left out where it was not seen",
    "lr": "the learning rate",
}
"""The numbers that a sink gets for each step, with their meanings."""

# From names in a sink to the keys of a step row whose values a sink gets unchanged.
_KEYS = {
    "grad_norm/pre": "norm",
    "grad_norm/post": "clipped_norm",
    "grad_norm/limit": "limit",
    "clip/coef": "coef",
    "clip/removed": "removed",
    "clip/cosine": "cosine",
    "loss": "loss",
    "lr": "lr",
}


@dataclass(frozen=True)
class Counts:
    """The counts of one optimizer's steps so far: all, clipped, skipped and non-finite steps."""

    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    nonfinite: int = 0

    def after(self, row: Mapping[str, object]) -> Counts:
        """Return the counts with one more step."""
        norm = _number(row.get("norm"))
        bad = bool(row.get("nonfinite")) or (norm is not None and not math.isfinite(norm))
        return Counts(
            self.steps + 1,
            self.clipped + bool(row.get("clipped")),
            self.skipped + bool(row.get("skipped")),
            self.nonfinite + bad,
        )


def scalars(row: Mapping[str, object], counts: Counts) -> dict[str, float]:
    """Return the known numbers of a step row by their names in a sink.

    Args:
        row: a step row, as `RecordWriter.step` takes it. Not mutated.
        counts: the counts of the row's optimizer, with this step.

    Example:
        >>> from gradclip.sinks.scalars import Counts
        >>> row = {"step": 1, "optimizer": 0, "norm": 4.0, "clipped_norm": 1.0, "clipped": True}
        >>> values = scalars(row, Counts().after(row))
        >>> values["grad_norm/pre"], values["grad_norm/post"], values["clip/rate"]
        (4.0, 1.0, 1.0)
    """
    found = {name: _number(row.get(key)) for name, key in _KEYS.items()}
    found["clip/rate"] = counts.clipped / counts.steps
    found["clip/skipped"] = float(counts.skipped)
    found["clip/nonfinite"] = float(counts.nonfinite)
    optimizer = row.get("optimizer")
    suffix = f"_{optimizer}" if optimizer else ""
    return {name + suffix: value for name, value in found.items() if value is not None}


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
