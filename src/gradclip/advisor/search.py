"""Decide what to run next, or what to keep, from what each record says about its policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..diagnosis.found import is_auto
from .advice import Arm
from .arm import is_fixed, meant
from .grid import rounded

__all__ = ["ASIDE", "AUTO", "FAILED", "Decision", "decide"]

AUTO = "auto"
"""The policy that explores: it clips from the first step on, and needs no limit."""

MOST_POLICIES = 4
"""With records of so many policies the search is over."""

APART = 1.25
"""Two limits whose ratio is under this are not worth two runs."""

SELDOM = 0.25
"""A limit that acts at no more than this share of the steps leaves most steps as they are."""

FURTHER = 3.0
"""The multiple of a limit that is tried next, if no higher limit was tried."""

LOWER = 0.1
"""The share of the lowest limit that is tried next, if no run survived."""

FAILED = ("diverged", "too little")
ASIDE = ("lost to a step",)
"""Verdicts on runs whose end says nothing about their policy."""


class Decision(NamedTuple):
    """What to do, and why."""

    policy: str
    reason: str
    settled: bool
    best: str | None
    trial: float | None = None
    """A limit that may be worth a try, although nothing shows that it is better."""


def decide(arms: Sequence[Arm]) -> Decision:
    """Return the policy for the next run.

    One record alone decides whether its policy stays. Several records are compared by their final
    losses: the search names the best of them, or one more limit, until four policies were tried.

    Args:
        arms: a row for each record, at least one, in the order in which they were made.
    """
    tried = _one_each(arms)
    if len(tried) > 1:
        failed = [arm for arm in tried if arm.verdict in FAILED]
        ranked = [arm for arm in tried if arm.verdict not in FAILED and arm.loss is not None]
        if len(failed) + len(ranked) > 1:
            return _compare(tried, ranked)
        tried = tried[-1:]
    return _alone(tried[0])


# ---- One record


def _alone(arm: Arm) -> Decision:
    """Decide on one record: keep its policy, or explore with `auto`."""
    why = arm.why.rstrip(".")
    again = (
        f"Run `{AUTO}`, which needs no limit and clips from the first step on, and ask again with "
        "both records."
    )
    trial = _higher(arm, ()) if arm.clip_rate > SELDOM else None
    if arm.verdict == "healthy":
        return Decision(
            arm.policy,
            f"Keep {_named(arm.policy)}: the run is healthy ({why}), and its record does not show "
            "that anything else is better.",
            settled=True,
            best=arm.policy,
            trial=trial,
        )
    if arm.verdict == "lost to a step":
        return Decision(
            arm.policy,
            f"Keep {_named(arm.policy)}: {why}, and no limit prevents that. Skip such steps: "
            "nonfinite='skip', or --nonfinite skip.",
            settled=True,
            best=arm.policy,
        )
    if is_auto(arm.policy):
        failed = arm.verdict in FAILED
        advice = (
            "`auto` starts at a tenth of the first norm, so that the size of the gradients is "
            "hardly the cause: lower the learning rate, and see `gradclip diagnose`."
            if failed
            else "Nothing shows that a fixed limit does better."
        )
        return Decision(
            arm.policy, f"Keep {_named(arm.policy)}: {why}. {advice}", settled=True,
            best=None if failed else arm.policy, trial=trial,
        )  # fmt: skip
    reason = {
        "held back": f"{_sentence(why)} So this record does not tell what a higher limit does.",
        "too little": f"The record says too little to choose a limit: {why}.",
    }.get(arm.verdict, _sentence(why))
    best = None if arm.verdict in FAILED else arm.policy
    return Decision(AUTO, f"{reason} {again}", settled=False, best=best)


# ---- Several records


def _compare(tried: Sequence[Arm], ranked: Sequence[Arm]) -> Decision:
    """Decide on records of several policies: one more run, or the best of them."""
    if not ranked:
        return _none_survived(tried)
    best = min(ranked, key=lambda arm: (arm.loss or 0.0, tried.index(arm)))
    found = _ranking(best, tried)
    if len(tried) < MOST_POLICIES:
        if best.verdict in ("unstable", "stuck") and not any(is_auto(a.policy) for a in tried):
            return Decision(
                AUTO,
                f"{found} But in its run, {best.why.rstrip('.')}. Run `{AUTO}` and ask again with "
                "all records.",
                settled=False,
                best=best.policy,
            )
        limit = _next_limit(best, tried)
        if limit is not None:
            side = "higher" if limit > (best.limit or math.inf) else "lower"
            return Decision(
                f"norm:{limit}",
                f"{found} One more run tells whether a {side} limit does better: ask again with "
                "all records. The best of them will be the advice.",
                settled=False,
                best=best.policy,
            )
    others = [arm for arm in tried if arm is not best]
    trial = _higher(best, others) if best.clip_rate > SELDOM else None
    return Decision(best.policy, f"{found} The search is at its end.", True, best.policy, trial)


def _none_survived(tried: Sequence[Arm]) -> Decision:
    """Decide where every run failed."""
    names = ", ".join(_named(arm.policy) for arm in tried)
    if not any(is_auto(arm.policy) for arm in tried):
        return Decision(
            AUTO,
            f"All of these runs failed: {names}. Run `{AUTO}`, which clips from the first step on, "
            "and ask again with all records.",
            settled=False,
            best=None,
        )
    limits = [arm.limit for arm in tried if arm.limit is not None]
    lower = rounded(LOWER * min(limits)) if limits else 0.0
    if len(tried) < MOST_POLICIES and lower > 0:
        return Decision(
            f"norm:{lower}",
            f"All of these runs failed: {names}. Try a tenth of the lowest limit, and ask again "
            "with all records.",
            settled=False,
            best=None,
        )
    return Decision(
        AUTO,
        f"All of these runs failed: {names}. So the size of the gradients is hardly the cause: "
        "lower the learning rate, and see `gradclip diagnose`.",
        settled=True,
        best=None,
    )


def _next_limit(best: Arm, tried: Sequence[Arm]) -> float | None:
    """Return a limit to try beside the best policy; None if the search can end.

    A healthy run with a limit, or without one, is not left. `auto` starts far under the norms by
    its rule, so that a healthy run under it does not show what their median as a limit does.
    """
    others = [arm for arm in tried if arm is not best]
    if best.verdict == "healthy" and (not is_auto(best.policy) or best.clip_rate <= SELDOM):
        return None
    if best.clip_rate > SELDOM:
        return _higher(best, others)
    return _lower(best, others)


def _higher(best: Arm, others: Sequence[Arm]) -> float | None:
    """Return a higher limit than one that acts at many steps; None without a new one.

    The limit at which the runs of our sweeps did best is near the median norm of the run that it
    makes. `auto` is lower than that by its rule, so that its record names the median norm. A fixed
    limit far under it moves by a factor. A higher limit that did worse bounds the step.
    """
    if best.limit is None or best.median_norm is None:
        return None
    half = math.sqrt(best.limit) * math.sqrt(best.median_norm)
    up = best.median_norm if is_auto(best.policy) else max(FURTHER * best.limit, half)
    worse = [a.limit for a in others if is_fixed(a.policy) and a.limit and a.limit > best.limit]
    bound = min(worse, default=math.inf)
    if bound < APART * up:
        up = math.sqrt(best.limit) * math.sqrt(bound)
    return _new(up, best, others) if up > best.limit else None


def _lower(best: Arm, others: Sequence[Arm]) -> float | None:
    """Return a limit that acts more often than one that seldom does; None without a new one."""
    if best.median_norm is None:
        return None
    twice = 2 * best.median_norm
    down = twice
    if best.limit is not None:
        down = min(twice, math.sqrt(best.limit) * math.sqrt(best.median_norm))
    top = math.inf if best.limit is None else best.limit
    worse = [a.limit for a in others if is_fixed(a.policy) and a.limit and a.limit < top]
    return _new(down, best, others) if max(worse, default=0.0) * APART < down < top else None


def _new(limit: float, best: Arm, others: Sequence[Arm]) -> float | None:
    """Return a rounded limit; None if a limit close to it was tried."""
    limit = rounded(limit)
    known = [arm.limit for arm in (best, *others) if is_fixed(arm.policy) and arm.limit]
    apart = all(max(limit / old, old / limit) >= APART for old in known) if limit > 0 else False
    return limit if apart else None


# ---- Words, and several records of one policy


def _one_each(arms: Sequence[Arm]) -> list[Arm]:
    """Return one arm for each policy, in the order of their first records.

    The loss of several records of a policy is their mean, and their verdict is that of the worst.
    """
    groups: dict[object, list[Arm]] = {}
    for arm in arms:
        if arm.verdict not in ASIDE or len(arms) == 1:
            groups.setdefault(meant(arm.policy), []).append(arm)
    return [_mean(group) for group in groups.values()] or [arms[-1]]


def _mean(group: list[Arm]) -> Arm:
    if len(group) == 1:
        return group[0]
    order = ("healthy", "held back", "stuck", "unstable", "diverged", "too little")
    worst = max(group, key=lambda arm: order.index(arm.verdict) if arm.verdict in order else -1)
    losses = [arm.loss for arm in group if arm.loss is not None]
    return Arm(
        worst.record, worst.policy, worst.verdict, worst.why,
        math.fsum(losses) / len(losses) if losses else None,
        worst.steps, worst.clip_rate, worst.median_norm, worst.limit,
    )  # fmt: skip


def _ranking(best: Arm, tried: Sequence[Arm]) -> str:
    rest = [f"{_named(arm.policy)} {_loss(arm)}" for arm in tried if arm is not best]
    return (
        f"Of {len(tried)} policies {_named(best.policy)} has the lowest final loss, {_loss(best)}, "
        f"against {', '.join(rest)}."
    )


def _loss(arm: Arm) -> str:
    if arm.verdict in FAILED:
        return "(failed)"
    return "(no loss)" if arm.loss is None else f"{arm.loss:.4g}"


def _named(policy: str) -> str:
    return "no clipping" if policy == "none" else policy


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
