"""Complete the names of methods and policies in the shell."""

from __future__ import annotations

__all__ = ["method_names", "policies"]


def method_names(incomplete: str) -> list[tuple[str, str]]:
    """Return the methods whose names begin with the text, with a summary of each."""
    from ..method import recipes  # noqa: F401 - The import fills the catalogue.
    from ..method.catalogue import CATALOGUE

    rows = sorted(CATALOGUE.values(), key=lambda row: row.name)
    return [(row.name, row.summary) for row in rows if row.name.startswith(incomplete)]


def policies(incomplete: str) -> list[tuple[str, str]]:
    """Return an example of each policy that begins with the text."""
    from ..method import recipes  # noqa: F401 - The import fills the catalogue.
    from ..method.catalogue import CATALOGUE

    rows = sorted(CATALOGUE.values(), key=lambda row: row.name)
    return [(row.example, row.summary) for row in rows if row.example.startswith(incomplete)]
