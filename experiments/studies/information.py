"""What clipping loses of a gradient, and what error feedback gives back."""

from __future__ import annotations

from ..setting import NONE, Setting

__all__ = ["LIMITS", "PARABOLA", "SEEDS", "TEXT", "policies", "settings"]

SEEDS = (0, 1, 2)
LIMITS = (0.03, 0.3)
PARABOLA = {
    NONE: 0.0,
    "norm:2.0": 7 / 9,
    "smooth:2.0": None,
    "normalise": 1.0,
    "feedback(norm:2.0)": 0.0,
    "clip21(norm:2.0)": 0.0,
}
"""Where each method comes to rest on the parabola, where that is known."""

TEXT = Setting("char_lm", 4, steps=300, sums=True)


def policies(limit: float) -> tuple[str, ...]:
    """Return the methods at one threshold; a value is clamped so that as much is cut."""
    norm, value = f"norm:{limit:g}", f"value:{limit / 30:g}"
    carried = (f"feedback({norm})", f"feedback({value})", f"clip21({norm})")
    return (norm, f"smooth:{limit:g}", value, *carried)


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    arms = [
        *(Setting("quadratic", 0.01, policy, steps=8000) for policy in PARABOLA),
        TEXT,
        *(TEXT.with_(policy=policy) for limit in LIMITS for policy in policies(limit)),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]
