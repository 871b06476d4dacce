"""What a diagnosis says: one finding, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .links import PAGES

__all__ = ["SEVERITIES", "Finding", "Kind", "Severity"]

Kind = Literal[
    "exploding",
    "vanishing",
    "dead-layers",
    "loss-spike",
    "norm-spike",
    "never-binds",
    "always-binds",
    "removes-most",
    "double-clipping",
    "clip-before-unscale",
    "non-finite",
    "skipped",
    "plateau",
]
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst. A note is worth knowing, and no fault."""


@dataclass(frozen=True)
class Finding:
    """One thing that a record shows.

    Attributes:
        kind: what it is.
        severity: "error" (the run is lost or useless), "warning" (change something), "note".
        step: the first step at which it shows; None: it belongs to none.
        sentence: the finding, plainly.
        suggestion: what to do.
        evidence: the numbers it rests on, by name.
        optimizer: whose steps it is about.
    """

    kind: Kind
    severity: Severity
    step: int | None
    sentence: str
    suggestion: str
    evidence: Mapping[str, object] = field(default_factory=dict)
    optimizer: int = 0

    @property
    def link(self) -> str:
        """The page of the docs that explains it, from the repository's root."""
        return PAGES[self.kind]

    def to_dict(self) -> dict[str, object]:
        """Return plain data; `evidence` may hold inf."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "optimizer": self.optimizer,
            "step": self.step,
            "sentence": self.sentence,
            "suggestion": self.suggestion,
            "link": self.link,
            "evidence": dict(self.evidence),
        }
