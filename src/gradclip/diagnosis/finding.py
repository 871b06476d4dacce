"""One finding of a diagnosis, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..show.card import card, code, fields, link, paragraph
from ..show.words import number
from .links import PAGES, docs_of

__all__ = ["SEVERITIES", "Finding", "Kind", "Severity"]

Kind = Literal[
    "exploding",
    "vanishing",
    "dead-layers",
    "loss-spike",
    "norm-spike",
    "spike-sample",
    "recurring-samples",
    "never-binds",
    "always-binds",
    "found-limit",
    "removes-most",
    "double-clipping",
    "clip-before-unscale",
    "non-finite",
    "skipped",
    "plateau",
    "ended-early",
    "no-steps",
]
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The severities, the worst first. A note is information, not a fault."""


@dataclass(frozen=True)
class Finding:
    """One fault or note that a record shows.

    Attributes:
        kind: the kind of fault, a key of `PAGES`.
        severity: "error" for a run that is lost or useless, "warning" for a fault to correct,
            "note" for information.
        step: the first step at which the fault shows; None if the finding has no single step.
        sentence: the finding in one sentence.
        suggestion: the remedy.
        evidence: the numbers behind the finding, by name.
        optimizer: the id of the optimizer.
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
        """The page of the docs that explains the finding, from the repository's root."""
        return PAGES[self.kind]

    @property
    def docs(self) -> str:
        """The address of the kind's section in the online docs."""
        return docs_of(self.kind)

    def to_dict(self) -> dict[str, object]:
        """Return the finding as plain data; `evidence` may hold inf."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "optimizer": self.optimizer,
            "step": self.step,
            "sentence": self.sentence,
            "suggestion": self.suggestion,
            "link": self.link,
            "docs": self.docs,
            "evidence": dict(self.evidence),
        }

    def _repr_html_(self) -> str:
        """Return the sentence, the remedy and the evidence's numbers, for a notebook."""
        where = "" if self.step is None else f", step {self.step:,}"
        numbers = [
            (name, number(float(value)))
            for name, value in self.evidence.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        return card(
            f"{self.severity}: {self.kind}{where}",
            paragraph(self.sentence),
            paragraph(self.suggestion),
            fields(numbers),
            code(f"gradclip explain {self.kind}"),
            link(self.docs, f"More on {self.kind}"),
        )
