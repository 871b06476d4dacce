"""What a forward and a backward pass leave of each module: inputs, and gradients of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from ...errors import PolicyError
from .ghost import Ghost, ghost_of
from .vmapped import tensors_in

__all__ = ["Kept", "Unit", "Use", "units_of"]


@dataclass(frozen=True)
class Unit:
    """A module whose parameters are looked after as one.

    Attributes:
        name: the module's name in the model.
        module: the module.
        ghost: the function that knows the module's gradients; None asks `vmapped`.
    """

    name: str
    module: nn.Module
    ghost: Ghost | None


@dataclass
class Use:
    """One call of a unit.

    Attributes:
        unit: what was called.
        args: with what, detached.
        kwargs: as args, by name.
        versions: the version of each tensor in args and kwargs at the call.
        grads: the gradient of each tensor in the output; None until a backward pass gives one.
    """

    unit: Unit
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    versions: list[int]
    grads: list[Tensor | None]

    @property
    def first(self) -> Tensor:
        """The first tensor that the unit was called with."""
        given = tensors_in((self.args, self.kwargs))
        if not given:
            remedy = "it was called without a tensor, whose first axis would be the batch"
            raise PolicyError.of("module", self.unit.name, remedy)
        return given[0]

    @property
    def first_axis(self) -> int:
        """The length of the first axis of this tensor, which must be the batch; 0 of a number."""
        return self.first.shape[0] if self.first.dim() else 0

    def refuse_overwritten(self) -> None:
        """Refuse an input that somebody has changed in place since the call."""
        now = [tensor._version for tensor in tensors_in((self.args, self.kwargs))]
        if now != self.versions:
            remedy = (
                "its input was changed in place after the call: use the form that returns a new "
                "tensor, such as inplace=False"
            )
            raise PolicyError.of("module", self.unit.name, remedy)


@dataclass
class Kept:
    """Hooks on all units, and the uses since the last `clear`.

    Only what a backward pass has met is here: other calls are freed with their graphs.

    Attributes:
        uses: in the order in which gradients came.
        passes: the backward passes that gave something.
        paused: whether a call is to be ignored.
    """

    uses: list[Use] = field(default_factory=list)
    passes: set[int] = field(default_factory=set)
    paused: bool = False
    _handles: list[RemovableHandle] = field(default_factory=list)

    def watch(self, units: list[Unit]) -> None:
        """Put a hook on each unit."""
        for unit in units:
            hook = self._hook_of(unit)
            # First of all hooks, to see the output before another hook changes it.
            handle = unit.module.register_forward_hook(hook, prepend=True, with_kwargs=True)
            self._handles.append(handle)

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget the uses, whose tensors are then free."""
        self.uses.clear()
        self.passes.clear()

    def _hook_of(self, unit: Unit) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            outputs = tensors_in(output)
            if module is not unit.module:  # A copy of the model has copies of the hooks.
                return
            if self.paused or not any(each.requires_grad for each in outputs):
                return
            args, kwargs = tree_map_only(Tensor, torch.detach, (args, kwargs))
            versions = [tensor._version for tensor in tensors_in((args, kwargs))]
            use = Use(unit, args, kwargs, versions, [None] * len(outputs))
            for place, each in enumerate(outputs):
                if each.requires_grad:
                    each.register_hook(self._collector(use, place))

        return hook

    def _collector(self, use: Use, place: int) -> Callable[[Tensor], None]:
        def collect(grad: Tensor) -> None:
            if all(each is None for each in use.grads):
                self.uses.append(use)
            use.grads[place] = grad.detach()
            self.passes.add(torch._C._current_graph_task_id())

        return collect


def units_of(model: nn.Module) -> list[Unit]:
    """Return the modules to watch: together they have all parameters, and none lies in another.

    A module that has parameters of its own and that no function knows is watched with everything in
    it.
    """
    return list(_units(model, "", set()))


def _units(module: nn.Module, name: str, met: set[nn.Module]) -> Iterator[Unit]:
    if module in met:
        return
    met.add(module)
    ghost = ghost_of(module)
    if ghost is not None or next(module.parameters(recurse=False), None) is not None:
        met.update(module.modules())
        if any(True for _ in module.parameters()):
            yield Unit(name or type(module).__name__, module, ghost)
        return
    for part, child in module.named_children():
        yield from _units(child, f"{name}.{part}" if name else part, met)
