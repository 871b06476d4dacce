"""What a memory becomes when the parameters, or the policy, are others than before.

One memory for all of a group stays what it is. What is remembered of a parameter follows the
parameter; what nothing is remembered of begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...arrays import Memory, State
from ...method.axes import Axis
from ...method.plan import AnyStage, Plan, Stage, WrappedStage
from ...method.threshold import Threshold
from .memory import alike

__all__ = ["Remembered", "carry_over"]


class Remembered(NamedTuple):
    """A memory, and what the memory is about.

    Attributes:
        plan: the layers of stages.
        memory: what the plan remembers.
        counts: returns how many units along an axis each gradient has.
    """

    plan: Plan
    memory: Memory
    counts: Callable[[Axis], Sequence[int]]


def carry_over(
    old: Remembered,
    new: Remembered,
    origin: Mapping[int, int],
    devices: Sequence[torch.device],
    *,
    same_policy: bool,
) -> Memory:
    """Return the new memory with all that the old one knows of the same things.

    Args:
        old: what is known; not mutated.
        new: the empty memory for what there is now; not mutated. Of values and of units only
            the shapes count.
        origin: from the place of a gradient now to the place that it had.
        devices: where the values of each gradient are now.
        same_policy: whether both plans are of one policy, so that a memory for a whole group is
            that of the same rule, whatever is in the group now.
    """
    pool = list(_entries(old.plan, old.memory))
    return _Carry(old, new, origin, devices, pool, same_policy).layers(new.plan, new.memory)


@dataclass
class _Entry:
    """The memory of one stage, or of the source of one wrapper.

    Attributes:
        around: the kinds of the wrappers that it stands in.
        stage: the stage.
        state: what it remembers.
        taken: the members whose memory has a new place.
    """

    around: tuple[type, ...]
    stage: AnyStage
    state: State
    taken: set[int] = field(default_factory=set)


def _entries(plan: Plan, memory: Memory, around: tuple[type, ...] = ()) -> Iterator[_Entry]:
    for layer, states in zip(plan, memory, strict=True):
        for stage, state in zip(layer, states, strict=True):
            if isinstance(stage, WrappedStage):
                yield _Entry(around, stage, state["source"])
                yield from _entries(stage.inner, state["inner"], (*around, type(stage.source)))
            else:
                yield _Entry(around, stage, state)


@dataclass
class _Carry:
    old: Remembered
    new: Remembered
    origin: Mapping[int, int]
    devices: Sequence[torch.device]
    pool: list[_Entry]
    same_policy: bool
    seen: int = 0

    def layers(self, plan: Plan, fresh: Memory, around: tuple[type, ...] = ()) -> Memory:
        return [
            [self._stage(*pair, around) for pair in zip(layer, states, strict=True)]
            for layer, states in zip(plan, fresh, strict=True)
        ]

    def _stage(self, stage: AnyStage, fresh: State, around: tuple[type, ...]) -> State:
        place, self.seen = self.seen, self.seen + 1
        found = [e for e in self.pool if e.around == around and _of_one_kind(e.stage, stage)]
        if isinstance(stage, WrappedStage):
            source = self._by_member(stage, fresh["source"], found)
            inside = (*around, type(stage.source))
            return {"source": source, "inner": self.layers(stage.inner, fresh["inner"], inside)}
        scope = stage.policy.measure.scope
        if scope in ("element", "singular"):
            return self._by_member(stage, fresh, found)
        if scope in ("tensor", "unit"):
            return self._by_row(stage, found)
        return self._whole(stage, fresh, found, place)

    def _whole(self, stage: Stage, fresh: State, found: list[_Entry], place: int) -> State:
        """Return the memory of a group, if this is the same group."""
        mine = [self.origin.get(member) for member in stage.members]
        for entry in found:
            if self.same_policy:
                same = entry is self.pool[place]
            else:
                same = mine == list(entry.stage.members) and not entry.taken
            if same and _fits(entry.state, fresh):
                entry.taken.update(entry.stage.members)
                return alike(entry.state, fresh)
        return fresh

    def _by_member(self, stage: AnyStage, fresh: State, found: list[_Entry]) -> State:
        """Return a memory of each member's values, of those members that have one."""
        new: State = {}
        for member in stage.members:
            was, key = self.origin.get(member, -1), str(member)
            for entry in found if key in fresh else ():
                state = entry.state.get(str(was))
                if state is None or was in entry.taken or not _fits(state, fresh[key]):
                    continue
                entry.taken.add(was)
                new[key] = _moved(state, fresh[key], self.devices[member])
                break
        return new

    def _by_row(self, stage: Stage, found: list[_Entry]) -> State:
        """Return a memory with one row for each member, or for each unit of each."""
        every = self._rows(self.new, stage)
        norms = torch.zeros(sum(map(len, every.values())), dtype=torch.float64)
        new = stage.policy.threshold.init(norms, torch_xp)
        for member, rows in every.items():
            was = self.origin.get(member, -1)
            for entry in found:
                assert isinstance(entry.stage, Stage)
                before = self._rows(self.old, entry.stage).get(was)
                if before is None or was in entry.taken or len(before) != len(rows):
                    continue
                if not _fits(entry.state, new, first=1):
                    continue
                entry.taken.add(was)
                new = _with_rows(new, rows, entry.state, before)
                break
        return new

    def _rows(self, side: Remembered, stage: Stage) -> dict[int, range]:
        """Return at which rows of a stage's memory each of its members is."""
        found, start, measure = {}, 0, stage.policy.measure
        counts = side.counts(measure.axis) if measure.scope == "unit" else None
        for member in stage.members:
            count = 1 if counts is None else counts[member]
            found[member] = range(start, start + count)
            start += count
        return found


def _of_one_kind(a: AnyStage, b: AnyStage) -> bool:
    """Whether what the one remembers means the same to the other."""
    if isinstance(a, WrappedStage) or isinstance(b, WrappedStage):
        both = isinstance(a, WrappedStage) and isinstance(b, WrappedStage)
        return both and type(a.source) is type(b.source)  # type: ignore[union-attr]
    same = a.policy.measure == b.policy.measure
    return same and _kinds(a.policy.threshold) == _kinds(b.policy.threshold)


def _kinds(threshold: Threshold) -> tuple[object, ...]:
    """Return the kinds of a threshold and of those inside of it."""
    inner = getattr(threshold, "__dict__", {}).values()
    return type(threshold), *(_kinds(part) for part in inner if hasattr(part, "update"))


def _fits(state: State, like: State, first: int = 0) -> bool:
    """Whether two memories have the same names and shapes, from one axis on."""
    if state.keys() != like.keys():
        return False
    for name, value in like.items():
        if isinstance(value, dict) != isinstance(state[name], dict):
            return False
        if isinstance(value, dict):
            if not _fits(state[name], value, first):
                return False
        elif tuple(state[name].shape[first:]) != tuple(value.shape[first:]):
            return False
    return True


def _moved(state: State, like: State, device: torch.device) -> State:
    """Return a memory with the dtypes of its like, on a device."""
    return {
        name: _moved(value, like[name], device)
        if isinstance(value, dict)
        else torch.as_tensor(value).to(device=device, dtype=like[name].dtype)
        for name, value in state.items()
    }


def _with_rows(new: State, rows: range, old: State, before: range) -> State:
    """Return a memory with some rows of another."""
    found: State = {}
    for name, value in new.items():
        if isinstance(value, dict):
            found[name] = _with_rows(value, rows, old[name], before)
            continue
        array: Tensor = torch.as_tensor(value).clone()
        taken = torch.as_tensor(old[name]).to(array)
        array[rows.start : rows.stop] = taken[before.start : before.stop]
        found[name] = array
    return found
