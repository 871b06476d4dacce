"""The page of the docs that explains each kind of finding."""

from __future__ import annotations

__all__ = ["PAGES"]

_ROOT = "docs/explanation/"
_EXPLODING = _ROOT + "exploding-gradients.md"
_VANISHING = _ROOT + "vanishing-gradients.md"
_THRESHOLD = _ROOT + "choosing-a-threshold.md"
_SCALING = _ROOT + "mixed-precision.md"

NORMALISATION = _ROOT + "batch-normalization.md"
"""The page about normalisation, which the suggestions on depth name."""

PAGES: dict[str, str] = {
    "exploding": _EXPLODING,
    "loss-spike": _EXPLODING,
    "norm-spike": _EXPLODING,
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
