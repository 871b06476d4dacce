"""What processes that work together say to each other before any of them goes on.

They say it in the store in which torch's processes have found each other, and not in a collective.
There a process that refuses its arguments can tell the others, a process that never comes can be
named, and a process that does something else meanwhile disturbs nothing: two collectives that do
not fit end the program. What is said is short, a number that stands for all of it. Only where the
numbers differ is everything said.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

from ...errors import GradclipError, LayoutError, PolicyError
from .reduce import Group

__all__ = [
    "Absent",
    "Round",
    "Said",
    "Value",
    "agree",
    "many_processes",
    "refusing",
    "store_of_the_job",
]


class Value(NamedTuple):
    """One value that all processes must have: as it is compared, and as it is shown."""

    same: str
    shown: str


Said = Mapping[str, Value]
"""What one process says: the names of what must be equal, and their values."""

Absent = Callable[[int], "str | None"]

# Lists are said as lines; of those that differ so many are named.
_MOST_NAMED = 5
_NOTHING = Value("", "nothing")
_LONGEST = 300
TOPIC = "the making of a clipper"
# So long who does not come may take to be found out, after the first one.
_GRACE = 2.0
_FIRST_WAIT, _LONGEST_WAIT = 0.0005, 0.05


def many_processes() -> bool:
    """Whether there are other processes to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def store_of_the_job() -> Store | None:
    """Return the store that all processes read and write; None if the job has none."""
    if not many_processes() or dist.get_backend() == "fake":  # One process plays all of them.
        return None
    store: Store | None = dist.distributed_c10d._get_default_store()
    return store


@contextmanager
def refusing(groups: Sequence[Group], topic: str = TOPIC) -> Iterator[None]:
    """Run a block that may refuse, and tell the other processes if it does.

    Args:
        groups: see `agree`.
        topic: see `agree`.
    """
    try:
        yield
    except Exception as error:
        agree(groups, _nothing, topic=topic, refusal=error)
        raise


def agree(
    groups: Sequence[Group],
    said: Callable[[Group], Said],
    absent: Absent | None = None,
    *,
    topic: str = TOPIC,
    refusal: Exception | None = None,
) -> None:
    """Raise in all processes if they do not say the same; all of them call this.

    Args:
        groups: of this process, in the same order in all processes.
        said: returns what this process says in a group.
        absent: returns why a process that has not come yet will never come; None if it may.
        topic: names the occasion.
        refusal: why this process cannot go on. It waits for nobody.

    Raises:
        PolicyError: what is said differs, or a process refuses; says the values, and whose.
        LayoutError: a process did not come.
    """
    store = store_of_the_job()
    if store is None:
        return
    rounds = [Round.begin(store, topic, group) for group in groups]
    if refusal is not None:
        for each in rounds:
            each.refuse(refusal)
        return
    gone: set[int] = set()

    def why_absent(rank: int) -> str | None:
        reason = None if absent is None else absent(rank)
        if reason is not None:
            gone.add(rank)
        return reason

    for each in rounds:
        each.say(said(each.group))
    fault: Exception | None = None
    for each in rounds:
        fault = fault or each.fault(said(each.group), why_absent)
    # What one group has found reaches those of other groups who work with its processes.
    for each in rounds if len(rounds) > 1 else ():
        fault = each.verdict(fault, why_absent)
    if fault is not None:
        for each in rounds:
            each.abandon(gone)
        raise fault


@dataclass(frozen=True)
class Round:
    """One occasion on which the processes of a group agree.

    Args:
        store: read and written by all of them.
        group: the processes.
        topic: names the occasion.
        place: the beginning of all keys of this round.
    """

    store: Store
    group: Group
    topic: str
    place: str

    @classmethod
    def begin(cls, store: Store, topic: str, group: Group) -> Round:
        """Return the round that is next for this process."""
        where = f"gradclip/{topic}/{zlib.crc32(repr(group.ranks).encode()):08x}"
        while True:
            count = store.add(f"{where}/{dist.get_rank()}", 1)
            place = f"{where}/round {count}"
            if not store.check([f"{place}/abandoned by {dist.get_rank()}"]):
                return cls(store, group, topic, place)

    def say(self, said: Said) -> None:
        """Say the number that stands for all that this process says."""
        self.store.add(f"{self.place}/said {_number(said)}", 1)
        self._arrive("said")

    def show(self, said: Said) -> None:
        """Show all that this process says, for an error of the others."""
        self.store.set(f"{self.place}/all of {dist.get_rank()}", json.dumps(dict(said)))

    def refuse(self, refusal: Exception) -> None:
        """Tell the others that this process cannot go on, and why."""
        text = str(refusal) if isinstance(refusal, GradclipError) else repr(refusal)
        self.store.set(f"{self.place}/refusal", json.dumps([dist.get_rank(), text]))
        for step in ("said", "judged"):
            self.store.set(f"{self.place}/{step}", "1")

    def abandon(self, gone: Iterable[int]) -> None:
        """Have processes that did not come to this round leave it out when they come again."""
        for rank in gone:
            self.store.set(f"{self.place}/abandoned by {rank}", "1")

    def fault(self, said: Said, absent: Absent | None = None) -> Exception | None:
        """Wait for the others, and return what is wrong."""
        late = self._wait(["said"], absent)
        if late is not None:
            return late
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        if self.store.add(f"{self.place}/said {_number(said)}", 0) == len(self.group.ranks):
            return None
        self.show(said)
        keys = [f"all of {rank}" for rank in self.group.ranks]
        late = self._wait(keys, None)
        if late is not None:
            return late
        texts = [self.store.get(f"{self.place}/{key}") for key in keys]
        every = [
            {name: Value(*value) for name, value in json.loads(text).items()} for text in texts
        ]
        return _difference(self.group.ranks, every)

    def verdict(self, fault: Exception | None, absent: Absent | None) -> Exception | None:
        """Tell the group what this process has found so far, and return what any has found."""
        if fault is not None:
            if self._refusal() is None:
                self.refuse(fault)
            return fault
        self._arrive("judged")
        return self._wait(["judged"], absent) or self._refusal()

    def _arrive(self, step: str) -> None:
        """Note that this process is there; the last one lets all of them go on."""
        self.store.set(f"{self.place}/{step} {dist.get_rank()}", "1")
        if self.store.add(f"{self.place}/count {step}", 1) == len(self.group.ranks):
            self.store.set(f"{self.place}/{step}", "1")

    def _refusal(self) -> Exception | None:
        if not self.store.check([f"{self.place}/refusal"]):
            return None
        rank, text = json.loads(self.store.get(f"{self.place}/refusal"))
        return PolicyError(f"the process {rank} cannot go on, and so no process does: {text}")

    def _wait(self, keys: Sequence[str], absent: Absent | None) -> Exception | None:
        """Wait for keys of this round; return what came of it if they do not come."""
        places = [f"{self.place}/{key}" for key in keys]
        limit: timedelta = self.store.timeout  # type: ignore[attr-defined] - the stubs lack it
        end, pause = time.monotonic() + limit.total_seconds(), _FIRST_WAIT
        reasons: dict[int, str] = {}
        while not self.store.check(places):
            refusal = self._refusal()
            if refusal is not None:
                return refusal
            late = self._missing(keys) if time.monotonic() > end and not reasons else []
            if late:
                who = _processes(late)
                return LayoutError(
                    f"{who} did not come to {self.topic} within {limit}: all processes "
                    f"of the group {list(self.group.ranks)} call this at the same time"
                )
            if absent is not None and pause >= _LONGEST_WAIT:
                missing = self._missing(keys)
                for rank in missing:
                    reason = None if rank in reasons else absent(rank)
                    # It may have come, and gone on, since it was found missing.
                    if reason is not None and rank in self._missing(keys):
                        reasons[rank] = reason
                        end = min(end, time.monotonic() + _GRACE)
                if reasons and (len(reasons) >= len(missing) or time.monotonic() > end):
                    return PolicyError(next(iter(reasons.values())))
            time.sleep(pause)  # Not a wait of the store's own: that one cannot be interrupted.
            pause = min(2 * pause, _LONGEST_WAIT)
        return None

    def _missing(self, keys: Sequence[str]) -> list[int]:
        """Return the processes that have not come yet."""
        one = len(keys) == 1
        waited = {r: f"{keys[0]} {r}" if one else f"all of {r}" for r in self.group.ranks}
        return [r for r, key in waited.items() if not self.store.check([f"{self.place}/{key}"])]


def _nothing(_: Group) -> Said:
    return {}


def _number(said: Said) -> str:
    text = json.dumps({name: value.same for name, value in said.items()}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}{zlib.adler32(text.encode()):08x}"


def _difference(ranks: Sequence[int], said: Sequence[Said]) -> Exception:
    """Return an error that names what differs, and the value of each process."""
    faults = []
    for name in dict.fromkeys(name for each in said for name in each):
        where: dict[Value, list[int]] = defaultdict(list)
        for rank, each in zip(ranks, said, strict=True):
            where[each.get(name, _NOTHING)].append(rank)
        if len({value.same for value in where}) > 1:
            lists = any(value.same.endswith("\n") for value in where)
            faults.append(_of_lists(name, where) if lists else _of_values(name, where))
    return PolicyError(
        f"the processes {list(ranks)} do not do the same: {'; '.join(faults)}. Give the same in "
        "all of them"
    )


def _of_values(name: str, where: Mapping[Value, Sequence[int]]) -> str:
    alike = len({value.shown for value in where}) < len({value.same for value in where})
    shown = [
        f"{_cut(value.same if alike else value.shown)} in {_processes(ranks)}"
        for value, ranks in where.items()
    ]
    return f"{name} is {' and '.join(shown)}"


def _of_lists(name: str, where: Mapping[Value, Sequence[int]]) -> str:
    """Say which lines of a list some processes do not have."""
    lists = {value: value.same.splitlines() for value in where}
    common = set.intersection(*map(set, lists.values()))
    shown = []
    for value, ranks in where.items():
        own = [_cut(line) for line in lists[value] if line not in common]
        more = f", and {len(own) - _MOST_NAMED} more" if len(own) > _MOST_NAMED else ""
        alone = ", ".join(own[:_MOST_NAMED]) + more
        shown.append(f"{_processes(ranks)}: {alone or 'nothing more'}")
    return (
        f"they give different lists of {name}; what only some have, {'; '.join(shown)} (or say "
        "with groups= where the others are)"
    )


def _processes(ranks: Iterable[int]) -> str:
    some = list(ranks)
    if len(some) == 1:
        return f"the process {some[0]}"
    return f"the processes {some}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
