"""Private training: the bias of a low limit, the noise of a high one, and AUTO-S."""

from __future__ import annotations

from ..intervals import Interval, paired
from ..outcome import complete, markdown, mean
from ..setting import Setting
from ..store import Store

__all__ = [
    "AUTO_S",
    "LIMITS",
    "NOISES",
    "SEEDS",
    "best",
    "best_limit",
    "change",
    "section",
    "settings",
]

SEEDS = (0, 1, 2, 3, 4)
LIMITS = (0.01, 0.1, 1.0, 10.0, 100.0)
NOISES = (0.0, 1.0)
PATHS = (0.3, 1.0, 3.0, 10.0)
"""The learning rate times the limit: how far one step goes if all samples agree and are clipped.
With it the noise of a step is given too, whatever the limit."""

AUTO_S = "normalise:eps=0.01"
"""Bu et al. 2023: g/(‖g‖ + γ). Its limit would be a factor of the learning rate."""

ARMS = {**{f"norm:{limit:g}": limit for limit in LIMITS}, AUTO_S: 1.0}
"""The policies, and the limits by which the noise is scaled."""

Figures = dict[str, float]
Best = dict[str, tuple[float, list[Figures]]]
"""By policy a path, and the runs on it, by seed."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        _setting(policy, path, noise).with_(seed=seed)
        for seed in seeds
        for noise in NOISES
        for policy in ARMS
        for path in PATHS
    ]


def _setting(policy: str, path: float, noise: float) -> Setting:
    options = (("depth", 3), ("poisson", 256))
    lr = path / ARMS[policy]
    return Setting("mnist", lr, policy, steps=150, options=options, noise=noise)


def best(store: Store, noise: float) -> Best:
    """Return for each policy the path with the least mean test error, and its runs."""
    arms = {(p, path): _setting(p, path, noise) for p in ARMS for path in PATHS}
    runs = complete(store, {f"{p} {path}": arm for (p, path), arm in arms.items()}, SEEDS)
    chosen: Best = {}
    for policy in ARMS:
        by_path = {path: runs[f"{policy} {path}"] for path in PATHS}
        path = min(by_path, key=lambda path: mean(run["test_error"] for run in by_path[path]))
        chosen[policy] = (path, by_path[path])
    return chosen if chosen[AUTO_S][1] else {}


def best_limit(runs: Best) -> str:
    """Return the limit with the least mean test error."""
    limits = [f"norm:{limit:g}" for limit in LIMITS]
    return min(limits, key=lambda policy: mean(run["test_error"] for run in runs[policy][1]))


def change(runs: Best, first: str, second: str) -> Interval:
    """Return the test error of the second policy less that of the first, in points of percent."""
    errors = [[100 * run["test_error"] for run in runs[policy][1]] for policy in (first, second)]
    return paired(errors[0], errors[1])


def section(store: Store) -> str:
    """Return the table, as Markdown; bold is the least test error."""
    rows = []
    for noise in NOISES:
        found = best(store, noise)
        errors = {p: mean(run["test_error"] for run in runs) for p, (_, runs) in found.items()}
        for policy, (path, runs) in found.items():
            error = f"{errors[policy]:.1%}"
            clipped, cosine = (mean(run[key] for run in runs) for key in ("clip_rate", "cosine"))
            rows.append(
                [
                    f"noise {noise:g}: `{policy}`",
                    f"{path / ARMS[policy]:g}",
                    f"**{error}**" if errors[policy] == min(errors.values()) else error,
                    f"{mean(run['loss'] for run in runs):.3f}",
                    f"{clipped:.0%}",
                    f"{cosine:.2f}",
                    "" if noise == 0 else f"{mean(run['signal'] for run in runs):.2f}",
                ]
            )
    head = ["noise: policy", "lr", "test error", "training loss", "clipped", "cosine", "signal"]
    return markdown(head, rows) if rows else "Not run yet."
