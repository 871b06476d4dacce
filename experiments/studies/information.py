"""The information that clipping loses, and the part that error feedback returns."""

from __future__ import annotations

from ..intervals import paired
from ..outcome import complete, found, loss_of, markdown, mean
from ..setting import NONE, Setting
from ..store import Store

__all__ = ["LIMITS", "PARABOLA", "SEEDS", "TEXT", "places", "policies", "section", "settings"]

SEEDS = (0, 1, 2)
LIMITS = (0.03, 0.3)
PARABOLA = {
    NONE: 0.0,
    "auto": None,
    "norm:2.0": 7 / 9,
    "smooth:2.0": None,
    "normalise": 1.0,
    "feedback(norm:2.0)": 0.0,
    "clip21(norm:2.0)": 0.0,
}
"""The place on the parabola at which each method comes to rest, if it is known."""

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
        TEXT.with_(policy="auto"),
        *(TEXT.with_(policy=policy) for limit in LIMITS for policy in policies(limit)),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]


def places(store: Store) -> dict[str, list[float]]:
    """Return the place on the parabola at which each method came to rest, for each seed."""
    arms = {p: Setting("quadratic", 0.01, p, steps=8000) for p in PARABOLA}
    return {p: [run["place"] for run in found(store, a, SEEDS).values()] for p, a in arms.items()}


def section(store: Store) -> str:
    """Return both tables, as Markdown."""
    resting = []
    for policy, values in places(store).items():
        known = PARABOLA[policy]
        if values:
            told = f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            resting.append([f"`{policy}`", "–" if known is None else f"{known:.3f}", told])
    names = ["auto", *(p for limit in LIMITS for p in policies(limit))]
    runs = complete(store, {NONE: TEXT, **{p: TEXT.with_(policy=p) for p in names}}, SEEDS)
    plain = [loss_of(run) for run in runs[NONE]]
    rows = []
    for policy, arm in runs.items() if plain else ():
        losses = [loss_of(run) for run in arm]
        rows.append(
            [
                f"`{policy}`",
                *(f"{mean(run[key] for run in arm):.3f}" for key in ("cosine", "removed", "drift")),
                f"{mean(losses):.3f}",
                "" if policy == NONE else paired(plain, losses).text(),
            ]
        )
    head = ["policy", "cosine", "share removed", "bias of the sum", "final loss"]
    return "\n\n".join(
        [
            markdown(["policy", "in closed form", "measured (range over seeds)"], resting),
            markdown([*head, "less unclipped, paired"], rows),
        ]
    )
