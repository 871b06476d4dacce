"""Find norms that grow and stay large, and the layer in which the growth began."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..record.rows import Floats
from ..record.trace import Trace
from .depth import MONOTONE, OFTEN, STEEP, profiles
from .finding import Finding
from .links import NORMALISATION, online
from .ruin import FEW, Ruin, ruin_of
from .spikes import HARMFUL, LEAD, LOG_DEVIATIONS, began_at, level_of
from .window import MIN_VALUES, SIGMA, WINDOW, median

__all__ = ["find_exploding", "find_exploding_depth"]

GROWTH = 100.0
"""The growth over the lowest earlier level that is an explosion; a learning-rate warm-up grows much
less."""

LEVEL = 3
"""The number of norms whose median is a level, so that one odd step does not change a level."""

LASTING = 10.0
"""The norms stay over this multiple of the old level after an explosion, but not after a spike."""

MOST = 0.9
"""The norms stay over this share of the norms before an explosion, however noisy these are."""

AFTER = 20
"""The number of steps after the growth in which the norms must stay large."""

SUDDEN = 1e4
"""In the first steps the norm has no lasting level: growth by as much, together with a growth of
the loss by `GROWTH`, is an explosion, even if the optimizer gets over it."""

LONG = 5
"""The number of steps from which growth is more than one spike."""

RISING = 3.0
"""The multiple of the old level from which a norm belongs to the growth."""


def find_exploding(trace: Trace) -> list[Finding]:
    """Return a finding if the norm grew and stayed large, or grew until it was not finite."""
    ruin = ruin_of(trace)
    found = _onset(trace) or _before_ruin(trace, ruin)
    if found is None:
        return []
    first, top = found
    norm = trace.column("norm")
    before = first - 1 if first and np.isfinite(norm[first - 1]) else first
    low, high = float(norm[before]), float(norm[top])
    rate = (high / low) ** (1 / max(top - before, 1)) if low > 0 else float("inf")
    step, reached = int(trace.steps[first]), int(trace.steps[top])
    layer, layer_ratio = _first_layer(trace, step, reached)
    loss = trace.column("loss")
    end = median(loss[-AFTER:])
    lost = (
        ruin is not None
        or bool(trace.nonfinite[-LEAD:].any())
        or not end < began_at(loss[: max(first, 1)])
    )
    where = f", first in {layer}" if layer else ""
    if high > low:
        grew = f"from step {step:,}{where}: its norm grows from {low:.3g} to {high:.3g}"
        grew += f" by step {reached:,}" if reached > step else " in one step"
        grew += f", a factor of {rate:.3g} a step" if reached > step else ""
    else:
        grew = f"at step {step:,}, with no smaller norm before: its norm is {high:,.5g}"
    if ruin is not None:
        grew += f", and from step {int(trace.steps[ruin.row]):,} on {_lost(trace, ruin)}"
    return [
        Finding(
            "exploding",
            "error" if lost else "warning",
            step,
            f"The gradient explodes {grew}.",
            _remedy(trace),
            {
                "norm_before": low if high > low else None,
                "norm_reached": high,
                "reached_at": reached,
                "growth_per_step": rate,
                "first_layer": layer,
                "first_layer_ratio": layer_ratio,
                "max_norm": float(np.max(norm[np.isfinite(norm)])),
                "nonfinite_from": None if ruin is None else int(trace.steps[ruin.row]),
                "loss_start": began_at(loss[: max(first, 1)]),
                "loss_end": end,
            },
            trace.optimizer,
        )
    ]


def _remedy(trace: Trace) -> str:
    limits = trace.column("limit")
    limit = median(limits[np.isfinite(limits)])
    if np.isfinite(limit):
        return (
            f"The limit of {limit:.3g} did not prevent this: lower the limit (`gradclip advise` "
            "proposes one) or the learning rate."
        )
    return (
        "Clip from the first step on (`gradclip advise` proposes a policy), or lower the "
        "learning rate."
    )


def _lost(trace: Trace, ruin: Ruin) -> str:
    """Return what is not finite in the last stretch of the run."""
    loss = trace.seen("loss") & ~np.isfinite(trace.column("loss"))
    lost = ["the loss"] * bool(loss[ruin.row :].any())
    lost += ["the gradient"] * bool(trace.nonfinite[ruin.row :].any())
    return f"{' and '.join(lost)} {'are' if len(lost) > 1 else 'is'} not finite"


def _before_ruin(trace: Trace, ruin: Ruin | None) -> tuple[int, int] | None:
    """Return the first and the last row of a short growth that ended in inf or NaN, or None."""
    if ruin is None or ruin.cause != "explosion" or ruin.top is None:
        return None
    norm = trace.column("norm")[: ruin.top]
    start = max(ruin.top - WINDOW, 0)
    level = RISING * ruin.usual
    calm = np.flatnonzero(norm[start:] <= level) if np.isfinite(level) else np.array([])
    # Without a usual norm the growth begins with the first norm, or is one norm.
    return (start + int(calm[-1]) + 1 if len(calm) else ruin.top), ruin.top


def find_exploding_depth(trace: Trace) -> list[Finding]:
    """Return a finding if norms grow geometrically towards the input."""
    every = profiles(trace)
    steep = [p for p in every if p.trend <= -MONOTONE and p.ratio <= 1 / STEEP]
    if not steep or (every[-1] is not steep[-1] and len(steep) < OFTEN * len(every)):
        return []
    lasts = every[-1] is steep[-1]
    worst = min(steep, key=lambda profile: profile.ratio)
    return [
        Finding(
            "exploding",
            "warning" if lasts else "note",
            steep[0].step,
            f"The gradient explodes towards the input: its norm grows by a factor of about "
            f"{worst.per_layer:.2g} a layer over {len(worst.names)} layers, so that the norm of "
            f"the first layers is {1 / worst.ratio:.2g} times the norm of the last layers.",
            "Scale the initialisation down, add residual connections or normalisation "
            f"({online(NORMALISATION)}); clip each layer by itself (`adagc`, `agc`, or "
            "scope=tensor), since the first layers dominate one global norm.",
            {
                "ratio": 1 / worst.ratio,
                "per_layer": worst.per_layer,
                "trend": worst.trend,
                "profile": [[n, float(v)] for n, v in zip(worst.names, worst.norms, strict=True)],
            },
            trace.optimizer,
        )
    ]


def _onset(trace: Trace) -> tuple[int, int] | None:
    """Return the row where the growth begins and the row where it reaches `GROWTH`, or None."""
    norm, loss = trace.column("norm"), trace.column("loss")
    bad = trace.nonfinite | (trace.seen("loss") & ~np.isfinite(loss))
    base = _lowest_level(norm)
    early = median(norm[:LEAD])
    with np.errstate(over="ignore", invalid="ignore"):
        high = np.isfinite(norm) & (norm > GROWTH * base) & (norm > early)
    for row in np.flatnonzero(high).tolist():
        start = max(row - WINDOW, 0)
        calm = np.flatnonzero(norm[start:row] <= RISING * base[row])
        first = start + int(calm[-1]) + 1 if len(calm) else start
        if _lasts(norm, loss, bad, first, row, max(LASTING * float(base[row]), early)):
            return first, row
    return None


def _lasts(norm: Floats, loss: Floats, bad: np.ndarray, first: int, row: int, level: float) -> bool:
    """Return whether the norm stays over a level after `row` while the loss does not fall.

    The level is at least the level of the first steps: in a saturated model the norm may fall and
    return to its first level, which is not an explosion.
    """
    earlier = norm[max(first - WINDOW, 0) : first]
    earlier = earlier[np.isfinite(earlier)]
    if _is_noise(norm[row], earlier[earlier > 0]):
        return False
    after = slice(row + 1, row + 1 + AFTER)
    if bad[after].any():
        return True
    # The loss of the first large norm is large too, so that it does not tell the level before.
    before, now = median(loss[max(first - AFTER, 0) : max(first, 1)]), median(loss[after])
    high = loss[first : row + AFTER]
    top = np.max(high, initial=0.0, where=np.isfinite(high))
    if first <= FEW and norm[row] >= SUDDEN * norm[0] and top > GROWTH * abs(before):
        return True
    # A record that ends with one odd norm or two shows no lasting growth.
    ends = len(norm) - row < LEVEL and row - first < LONG
    reached = median(norm[row : row + 1 + AFTER])
    usual = float(np.quantile(earlier, MOST)) if len(earlier) else 0.0
    if reached >= level and reached > usual and not ends:
        return not now < before
    # A norm may fall again because the model is ruined: the growth was long and raised the loss.
    return row - first >= LONG and now > before + HARMFUL * level_of(loss[: max(first, 1)])


def _is_noise(value: float, earlier: Floats) -> bool:
    """Return whether a norm is within the noise of the norms before the growth, all above zero."""
    logs = np.log(earlier)
    middle = median(logs)
    noise = SIGMA * median(np.abs(logs - middle))
    return len(logs) >= MIN_VALUES and np.log(value) < middle + LOG_DEVIATIONS * noise


def _lowest_level(norm: Floats) -> Floats:
    """Return the smallest median of `LEVEL` consecutive norms in the window before each norm.

    The medians leave out non-finite norms. The result is inf where no level is above zero.
    """
    finite = np.isfinite(norm)
    kept = norm[finite]
    if not len(kept):
        return np.full(len(norm), np.inf)
    padded = np.concatenate([np.repeat(kept[:1], LEVEL - 1), kept])
    levels = np.median(sliding_window_view(padded, LEVEL), axis=1)
    levels = np.concatenate([np.full(WINDOW, np.inf), np.where(levels > 0, levels, np.inf)])
    base = sliding_window_view(levels, WINDOW).min(axis=1)
    return base[np.cumsum(finite) - finite]


def _first_layer(trace: Trace, first: int, last: int) -> tuple[str | None, float | None]:
    """Return the first parameter whose norm exceeds its level by `LASTING`, and the ratio."""
    steps, names, matrix = trace.norms
    before, during = steps < first, (steps >= first) & (steps <= last)
    if not before.any() or not during.any():
        return None, None
    usual = np.array([median(column[-WINDOW:]) for column in matrix[before].T])
    for row in matrix[during]:
        with np.errstate(all="ignore"):
            ratios = np.where(usual > 0, row / usual, np.nan)
        known = np.where(np.isnan(ratios), -np.inf, ratios)
        if known.max(initial=-np.inf) >= LASTING:
            place = int(known.argmax())
            return names[place], float(known[place])
    return None, None
