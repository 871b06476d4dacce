"""Which samples of the data set a script's DataLoader gave, for the batch of a backward pass."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch.utils.data import dataloader

__all__ = ["Loaders"]

# More batches than this between two backward passes are one too many anyway.
_PENDING = 4


class _Given(NamedTuple):
    """One batch that a loader gave.

    Attributes:
        loader: the iterator of the loader.
        ids: the places in the data set; None if they cannot be known.
    """

    loader: weakref.ref[Any]
    ids: list[int | str] | None


class Loaders:
    """Follows the batches of DataLoaders up to the backward pass that they are for.

    A batch is that of a backward pass if it is the only one that was given since the pass before.
    A script that fetches batches ahead, or takes from two loaders, leaves that open: such a pass
    has no ids, rather than those of another batch. Batches given without gradients are not counted.

    Args:
        tell: called with a name and a sentence, once, where there are no ids.
    """

    def __init__(self, tell: Callable[[str, str], None] = lambda *_: None) -> None:
        self._tell = tell
        self._told = False
        self._pending: deque[_Given] = deque(maxlen=_PENDING)
        self._ahead: weakref.WeakSet[Any] = weakref.WeakSet()
        self._drawn: weakref.WeakKeyDictionary[Any, deque[object]] = weakref.WeakKeyDictionary()

    def watch(self, undo: ExitStack) -> None:
        """Follow every DataLoader of this process, until it is undone."""
        kind = dataloader._BaseDataLoaderIter
        draw, give, reset = kind._next_index, kind.__next__, kind._reset

        @functools.wraps(draw)
        def drawn(iterator: Any) -> Any:
            index = draw(iterator)
            self._drawn.setdefault(iterator, deque()).append(index)
            return index

        @functools.wraps(give)
        def given(iterator: Any) -> Any:
            batch = give(iterator)
            self._on_batch(iterator)
            return batch

        @functools.wraps(reset)
        def again(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            self._drawn.pop(iterator, None)
            return reset(iterator, *args, **kwargs)

        for name, old, new in (
            ("_next_index", draw, drawn), ("__next__", give, given), ("_reset", reset, again)
        ):  # fmt: skip
            undo.callback(setattr, kind, name, old)
            setattr(kind, name, new)

    def ids_of(self, count: int) -> list[int | str] | None:
        """Return the ids of the samples in the backward pass that runs now; None if unknown.

        Args:
            count: how many samples the pass has.
        """
        if not self._pending:
            return None
        if len(self._pending) > 1 or self._pending[0].loader() in self._ahead:
            self._say(
                "more than one batch was fetched before a backward pass, so which one the pass is "
                "of cannot be known"
            )
            return None
        ids = self._pending[0].ids
        if ids is not None and len(ids) != count:
            self._say(f"the loader gave {len(ids)} samples, and the model got {count}")
            return None
        return ids

    def end_of_backward(self) -> None:
        """Note that the batches so far are used."""
        self._pending.clear()

    def _on_batch(self, iterator: Any) -> None:
        waiting = self._drawn.get(iterator)
        index = waiting.popleft() if waiting else None
        if not torch.is_grad_enabled():
            return
        if any(each.loader() is iterator for each in self._pending):
            self._ahead.add(iterator)
        self._pending.append(_Given(weakref.ref(iterator), _ids(iterator, index)))

    def _say(self, why: str) -> None:
        if not self._told:
            self._told = True
            text = f"some steps have no ids of their samples: {why}"
            self._tell("samples-without-ids", text)


def _ids(iterator: Any, index: object) -> list[int | str] | None:
    """Return the index of a batch as ids, if the batch holds the samples in its order."""
    is_map = iterator._dataset_kind == dataloader._DatasetKind.Map
    if index is None or not is_map or not getattr(iterator, "_in_order", True):
        return None
    listed: Sequence[Any] = index if isinstance(index, (list, tuple)) else [index]
    values: list[Any] = [each.item() if hasattr(each, "item") else each for each in listed]
    return values if all(isinstance(each, (int, str)) for each in values) else None
