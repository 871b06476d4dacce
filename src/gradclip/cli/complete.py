"""Complete the names of methods, policies and kinds of findings in the shell."""

from __future__ import annotations

__all__ = ["kinds", "method_names", "policies"]


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


def kinds(incomplete: str) -> list[tuple[str, str]]:
    """Return the kinds of findings that begin with the text, with a title of each."""
    from ..diagnosis import KINDS

    return [(kind, row.title) for kind, row in KINDS.items() if kind.startswith(incomplete)]
