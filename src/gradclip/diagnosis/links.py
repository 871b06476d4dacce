"""The page of the docs that explains each kind of finding, and its address."""

from __future__ import annotations

__all__ = ["DOCS", "PAGES", "docs_of", "online"]

DOCS = "https://gradclip.readthedocs.io/en/latest/"
"""The address of the online docs, set here alone. The site is published there once the project is
published; until then `make docs` builds the same pages."""

_ROOT = "docs/explanation/"
_EXPLODING = _ROOT + "exploding-gradients.md"
_VANISHING = _ROOT + "vanishing-gradients.md"
_THRESHOLD = _ROOT + "choosing-a-threshold.md"
_SCALING = _ROOT + "mixed-precision.md"

_SAMPLES = "docs/guides/bad-samples.md"

NORMALISATION = _ROOT + "batch-normalization.md"
"""The page about normalisation, which the suggestions on depth name."""

PAGES: dict[str, str] = {
    "exploding": _EXPLODING,
    "loss-spike": _EXPLODING,
    "norm-spike": _EXPLODING,
    "spike-sample": _SAMPLES,
    "recurring-samples": _SAMPLES,
    "vanishing": _VANISHING,
    "dead-layers": _VANISHING,
    "plateau": _VANISHING,
    "never-binds": _THRESHOLD,
    "always-binds": _THRESHOLD,
    "found-limit": _THRESHOLD,
    "removes-most": _THRESHOLD,
    "double-clipping": _THRESHOLD,
    "clip-before-unscale": _SCALING,
    "non-finite": _SCALING,
    "skipped": _SCALING,
    "ended-early": "docs/reference/records.md",
    "no-steps": "docs/guides/your-framework.md",
}


def online(page: str) -> str:
    """Return the address of a page of the docs.

    Args:
        page: the page's path from the repository's root, with an anchor or without.

    Example:
        >>> online("docs/cli.md#gradclip-explain").removeprefix(DOCS)
        'cli.html#gradclip-explain'
    """
    path, mark, anchor = page.removeprefix("docs/").partition("#")
    return f"{DOCS}{path.removesuffix('.md')}.html{mark}{anchor}"


def docs_of(kind: str) -> str:
    """Return the address of the section that explains a kind of finding."""
    return online(f"docs/findings.md#{kind}")
