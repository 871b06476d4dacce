"""Whether the advised threshold is as good as the best of a full sweep."""

from __future__ import annotations

from ..setting import ADVISED, Setting

__all__ = ["CASES", "HELD_OUT", "SEEDS", "THRESHOLDS", "settings"]

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

SEEDS = (0, 1, 2)
"""The seeds that the advisor's rule was made with."""

HELD_OUT = (3, 4, 5)
"""Looked at once, when the rule was fixed."""

CASES = {
    "char_lm hot": Setting("char_lm", lr=16, steps=300),
    "adding hot": Setting("adding", lr=0.1, steps=1000),
    "mnist hot": Setting("mnist", lr=0.1, steps=300),
    "char_lm calm": Setting("char_lm", lr=4, steps=300),
    "adding calm": Setting("adding", lr=0.03, steps=1000),
    "mnist calm": Setting("mnist", lr=0.01, steps=300),
}
"""Each task at a learning rate at which it fails without clipping, and at one at which it works."""


def sweep(case: Setting) -> list[Setting]:
    """Return a case without clipping and at each threshold."""
    return [case, *(case.with_(policy=f"norm:{limit:g}") for limit in THRESHOLDS)]


def settings(seeds: tuple[int, ...] = SEEDS + HELD_OUT) -> list[Setting]:
    """Return every run of the study."""
    return [
        arm.with_(seed=seed)
        for seed in seeds
        for case in CASES.values()
        for arm in (*sweep(case), case.with_(policy=ADVISED))
    ]
