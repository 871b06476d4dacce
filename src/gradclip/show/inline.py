"""HTML as the last value of a notebook's cell."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Inline"]


@dataclass(frozen=True)
class Inline:
    """HTML that a notebook shows, and that a program may write to a file.

    Attributes:
        title: the name of the picture, plain text.
        html: the HTML.
    """

    title: str
    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        """Return the HTML, for a notebook."""
        return self.html
