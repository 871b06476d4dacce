"""A copy of all that a step may change, for a step that turns out to be one to skip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Whole"]

# Puts one value back as it was, and returns it.
PutBack: TypeAlias = Callable[[], object]

# What a step does not change: they belong to whoever has set them.
_NOT_OURS = ("step", "defaults", "grad_scale", "found_inf")


class Whole:
    """The weights, the state, the groups and the counters of an optimizer, at one moment.

    What is put back is the same object as before: whoever holds a tensor, a list or a dictionary of
    the optimizer still holds the optimizer's. Optimizers inside of the optimizer belong to the
    optimizer; a value that is neither of them, nor a number or a text, stays as the step left it.

    Args:
        optimizer: not mutated until `put_back`.
    """

    @torch.no_grad()
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._seen: dict[int, PutBack] = {}
        self._finite: dict[int, bool] = {}
        self._optimizer = optimizer
        self._put_back = self._copy(optimizer)

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what was done to the optimizer and its weights since."""
        self._put_back()

    @torch.no_grad()
    def is_spoilt(self) -> bool:
        """Whether inf or NaN came into a weight or the state, where all was finite before."""
        held = vars(self._optimizer)
        found = _tensors([held.get("param_groups"), held.get("state")], set())
        return any(self._finite.get(id(t), True) and not _is_finite(t) for t in found)

    def _copy(self, value: object) -> PutBack:
        """Return what puts a value back, each object once: state and groups may share them."""
        known = self._seen.get(id(value))
        if known is None:
            known = self._copy_new(value)
        return known

    def _copy_new(self, value: object) -> PutBack:
        if isinstance(value, Tensor):
            return self._remember(value, self._tensor(value))
        if isinstance(value, torch.optim.Optimizer):
            return self._remember(value, self._attributes(value))
        if isinstance(value, dict):
            return self._remember(value, self._dict(value))
        if isinstance(value, (list, deque)):
            return self._remember(value, self._list(value))
        return lambda: value

    def _remember(self, value: object, put_back: PutBack) -> PutBack:
        self._seen[id(value)] = put_back
        return put_back

    def _tensor(self, tensor: Tensor) -> PutBack:
        before = tensor.detach().clone()
        self._finite[id(tensor)] = _is_finite(tensor)

        def put_back() -> Tensor:
            tensor.detach().copy_(before)
            return tensor

        return put_back

    def _attributes(self, optimizer: torch.optim.Optimizer) -> PutBack:
        # An optimizer may hold itself, by way of another one.
        self._seen[id(optimizer)] = lambda: optimizer
        held = {
            name: self._copy(value)
            for name, value in vars(optimizer).items()
            if name not in _NOT_OURS and "_hooks" not in name
        }

        def put_back() -> object:
            vars(optimizer).update({name: value() for name, value in held.items()})
            return optimizer

        return put_back

    def _dict(self, value: dict[object, object]) -> PutBack:
        self._seen[id(value)] = lambda: value
        held = {key: self._copy(item) for key, item in value.items()}

        def put_back() -> object:
            before = {key: item() for key, item in held.items()}
            value.clear()
            value.update(before)
            return value

        return put_back

    def _list(self, value: list[object] | deque[object]) -> PutBack:
        self._seen[id(value)] = lambda: value
        held = [self._copy(item) for item in value]

        def put_back() -> object:
            before = [item() for item in held]
            value.clear()
            value.extend(before)
            return value

        return put_back


def _is_finite(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return True
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Return the tensors in a nest of dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, deque)) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen)
