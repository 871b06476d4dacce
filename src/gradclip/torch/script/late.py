"""Clipping that comes after the step, when it changes nothing."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ..step.gate import Args, Kwargs
from .together import params_of

__all__ = ["Late"]


class _Used:
    """Some gradients as they are now, not kept alive.

    Args:
        params: all of them have a gradient; not kept alive either.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = [TensorWeakRef(p) for p in params]
        self._grads = [TensorWeakRef(p.grad) for p in params if p.grad is not None]
        self._versions = [p.grad._version for p in params if p.grad is not None]

    def writes(self) -> int | None:
        """Return how often they were written since; None if they are not there any more."""
        writes = 0
        for param, grad, version in zip(self._params, self._grads, self._versions, strict=True):
            owner = param()
            if owner is None or owner.grad is None or owner.grad is not grad():
                return None
            writes = max(writes, owner.grad._version - version)
        return writes

    def again(self) -> _Used:
        """Return the gradients of the same parameters, as they are now."""
        owners = [param() for param in self._params]
        return _Used([p for p in owners if p is not None and p.grad is not None])


class _Suspect:
    """A call for gradients that steps have used. What comes next shows if it was in vain."""

    def __init__(self, name: str, params: Sequence[Tensor], backwards: int) -> None:
        self.name = name
        self._params = {id(p) for p in params}
        self._used = _Used([params[0]])
        self._backwards = backwards

    def is_for(self, params: Sequence[Tensor]) -> bool:
        return not self._params.isdisjoint(map(id, params))

    def was_in_vain(self, backwards: int) -> bool:
        """Whether the gradients were thrown away, and not only added to."""
        writes = self._used.writes()
        return writes is None or writes > backwards - self._backwards


class Late:
    """Finds out whether a script clips only what its optimizers have used already.

    A call counts as late if a step has used all its gradients, nobody wrote to them in between, and
    the next step has others in their place; or if there are no gradients, and a step had some.

    Attributes:
        backwards: how many backward calls there were.
    """

    def __init__(self) -> None:
        self.backwards = 0
        self._used: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Used] = (
            weakref.WeakKeyDictionary()
        )
        self._suspects: dict[str, _Suspect] = {}
        self._stepped: list[torch.optim.Optimizer] = []
        self._useful: Counter[str] = Counter()
        self._empty: Counter[str] = Counter()

    def after_step(self, optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs) -> None:
        """Note which gradients a step has used; the first and the last stand for all."""
        have = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if have:
            self._used[optimizer] = _Used([have[0], have[-1]])

    def is_late(self, name: str, params: Sequence[Tensor]) -> bool:
        """Whether a call of the script's looks as if it came after the step.

        Args:
            name: of the function.
            params: what it is for.
        """
        have = [p for p in params if p.grad is not None]
        if not have:
            self._empty[name] += self._have_stepped(params)
            return False
        stepped = [each for each, grads in list(self._used.items()) if grads.writes() == 0]
        used = {each for optimizer in stepped for each in params_of(optimizer)}
        if all(id(p) in used for p in have):
            self._stepped = stepped
            return True
        self._useful[name] += 1
        return False

    def is_always_empty(self, name: str) -> bool:
        """Whether all calls of a function were for gradients that a step had, and are gone."""
        return self._empty[name] > 1 and not self._useful[name]

    def _have_stepped(self, params: Sequence[Tensor]) -> bool:
        known = {each for optimizer in list(self._used) for each in params_of(optimizer)}
        return any(id(p) in known for p in params)

    def suspect(self, name: str, params: Sequence[Tensor]) -> None:
        """Watch what becomes of a call that looks late; it has been made."""
        have = [p for p in params if p.grad is not None]
        if have and name not in self._suspects:
            self._suspects[name] = _Suspect(name, have, self.backwards)
        for optimizer in self._stepped:  # The next call may be for other parameters of theirs.
            self._used[optimizer] = self._used[optimizer].again()
        self._stepped = []

    def before_step(self, params: Sequence[Tensor]) -> str | None:
        """Return the function that turns out to be called after the step, if one does.

        Args:
            params: of the step that begins now; nobody but the script wrote to their gradients.
        """
        for name, suspect in list(self._suspects.items()):
            if not suspect.is_for(params):
                continue
            del self._suspects[name]
            if not suspect.was_in_vain(self.backwards):
                self._useful[name] += 1
            elif not self._useful[name]:
                return name
        return None
