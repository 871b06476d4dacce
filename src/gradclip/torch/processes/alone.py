"""A clipper that works alone leaves a note for those that wait for it.

Plain tensors without groups need no other process, so their clipper waits for nobody. But where
another process has given groups, or verify, for the same parameters, that one would wait for ever.
Whoever comes second sees the other's note.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from ...errors import PolicyError
from .agree import Absent, store_of_the_job

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Note", "leave_note", "noticing"]

_ANSWER, _PAUSE = 2.0, 0.01  # Seconds.
_REMEDY = (
    "give the same groups= and verify= in all processes, and the same parameters: one of them "
    "works alone, and the other waits for it"
)


def _place(store: Store, names: Sequence[str]) -> str:
    """Return where the notes on these names are, since the last clipper that all have made."""
    place = f"gradclip/alone/{zlib.crc32(repr(tuple(names)).encode()):08x}"
    return f"{place}/{store.add(f'{place}/together {dist.get_rank()}', 0)}"


@dataclass(frozen=True)
class Note:
    """What a clipper that works alone has left.

    Args:
        place: the beginning of the keys, for the names of its parameters.
        count: which of the clippers of these names it is, in this process.
    """

    place: str
    count: int

    def refuse_if_missed(self) -> None:
        """Refuse to go on if another process has waited for this one in vain.

        Raises:
            PolicyError: says which process has waited.
        """
        store = store_of_the_job()
        if store is None:
            return
        key = f"{self.place}/missed {dist.get_rank()}"
        if store.check([key]):
            rank, before, until = map(int, store.get(key).decode().split())
            if before < self.count <= until:
                raise PolicyError(f"the process {rank} has waited for this one: {_REMEDY}")


def leave_note(names: Sequence[str]) -> Note | None:
    """Leave a note that the clipper of these parameters waits for nobody; None in one process.

    Raises:
        PolicyError: another process waits for this one.
    """
    store = store_of_the_job()
    if store is None:
        return None
    place = _place(store, names)
    note = Note(place, store.add(f"{place}/made {dist.get_rank()}", 1))
    # Whoever waits may wait for others, or has not looked since this process came: it answers.
    end = time.monotonic() + _ANSWER
    while store.add(f"{place}/waits {note.count - 1}", 0) > 0 and time.monotonic() < end:
        note.refuse_if_missed()
        time.sleep(_PAUSE)
    note.refuse_if_missed()
    return note


@contextmanager
def noticing(names: Sequence[str]) -> Iterator[Absent | None]:
    """Give a function that tells why a process will not come, while this one waits.

    Args:
        names: of the parameters of this process.
    """
    store = store_of_the_job()
    if store is None:
        yield None
        return
    place = _place(store, names)
    made = f"{place}/made {dist.get_rank()}"
    mine = store.add(made, 0)

    def absent(rank: int) -> str | None:
        theirs = store.add(f"{place}/made {rank}", 0)
        if theirs <= mine:
            return None
        store.set(f"{place}/missed {rank}", f"{dist.get_rank()} {mine} {theirs}")
        store.add(made, max(theirs - store.add(made, 0), 0))  # The next ones count alike.
        return f"the process {rank} does not wait for this one: {_REMEDY}"

    store.add(f"{place}/waits {mine}", 1)
    try:
        yield absent
        store.add(f"{place.rpartition('/')[0]}/together {dist.get_rank()}", 1)
    finally:
        store.add(f"{place}/waits {mine}", -1)
