"""Follows the advisor: record without clipping, and do as it says until the advice is at rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gradclip import advise, read_run
from gradclip.record import Run

from .setting import NONE, Setting
from .train import Figures, train

__all__ = ["Course", "follow", "train_advised"]

MOST = 8
"""The largest number of askings of a course that does not come to rest."""


@dataclass
class Course:
    """The course of the runs that follow the advice.

    Attributes:
        policies: what was run, in order.
        kept: the policy at rest; None if the course did not come to rest.
        askings: how often the advisor was asked until it named the policy at rest.
        left: the best policies so far that the advice left although their run was healthy.
    """

    policies: list[str] = field(default_factory=list[str])
    kept: str | None = None
    askings: int = 0
    left: list[str] = field(default_factory=list[str])


def follow(start: str, perform: Callable[[str], Run]) -> Course:
    """Follow the advice, each time with all records, until it is at rest.

    Args:
        start: the policy of the first run.
        perform: trains with a policy, and returns the record.
    """
    course, runs, policy = Course(), list[Run](), start
    while course.askings < MOST:
        runs.append(perform(policy))
        course.policies.append(policy)
        advice = advise(runs, replays=False)
        course.askings += 1
        if advice.recommended in course.policies:
            course.kept = advice.recommended
            break
        best = next((arm for arm in advice.arms if arm.policy == advice.best), None)
        if best is not None and best.verdict == "healthy":
            course.left.append(best.policy)
        policy = advice.recommended
    return course


def train_advised(setting: Setting) -> Figures:
    """Return the figures of a run with the policy that the record without clipping advises.

    "again" has the figures of the run at which the advice is at rest, if asked again and again.
    """
    known: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:

        def perform(policy: str) -> Run:
            file = Path(folder) / f"{len(known)}.jsonl"
            known[policy] = train(setting.with_(policy=policy), file)
            return read_run(file)

        course = follow(NONE, perform)
    first, last = course.policies[min(1, course.askings - 1)], course.kept or course.policies[-1]
    kept = ("loss", "test_loss", "test_error", "diverged", "solved", "clip_rate")
    rest = {name: known[last][name] for name in kept if name in known[last]}
    rest |= {"policy": last, "askings": course.askings}
    return {**known[first], "policy": first, "again": rest}
