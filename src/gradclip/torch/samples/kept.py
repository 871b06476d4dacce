"""What a forward and a backward pass leave of each module: inputs, and gradients of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from ...errors import PolicyError
from .attention import draws, random_of
from .call import Call, tensors_in
from .ghost import Ghost, ghost_of

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
        call: with what; a backward pass fills in the gradients of the output.
        versions: the version of each tensor in args and kwargs at the call.
    """

    unit: Unit
    call: Call
    versions: list[int]

    @property
    def first(self) -> Tensor:
        """The first tensor that the unit was called with."""
        first = self.call.first
        if first is None:
            remedy = "it was called without a tensor, whose first axis would be the batch"
            raise PolicyError.of("module", self.unit.name, remedy)
        return first

    @property
    def first_axis(self) -> int:
        """The length of the first axis of this tensor, which must be the batch; 0 of a number."""
        return self.first.shape[0] if self.first.dim() else 0

    def refuse_overwritten(self) -> None:
        """Refuse an input that somebody has changed in place since the call."""
        now = [tensor._version for tensor in tensors_in((self.call.args, self.call.kwargs))]
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
        lean: whether backward passes leave out the gradients of whole weights.
    """

    uses: list[Use] = field(default_factory=list)
    passes: set[int] = field(default_factory=set)
    paused: bool = False
    lean: bool = False
    _handles: list[RemovableHandle] = field(default_factory=list)
    _random: dict[str, Tensor] = field(default_factory=dict)
    _resting: dict[str, list[Tensor]] = field(default_factory=dict)

    def watch(self, units: list[Unit]) -> None:
        """Put a hook on each unit."""
        for unit in units:
            # Last of all hooks before the call, and first of all after the call, so that no other
            # hook changes the output before.
            before = unit.module.register_forward_pre_hook(self._before(unit), with_kwargs=True)
            hook = self._hook_of(unit)
            after = unit.module.register_forward_hook(
                hook, prepend=True, with_kwargs=True, always_call=True
            )
            self._handles += [before, after]

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def take(self) -> list[Use]:
        """Hand out the uses, nearly in the order of the calls, so that each can be freed."""
        taken = self.uses[::-1]
        self.uses.clear()
        return taken

    def clear(self) -> None:
        """Forget the uses, whose tensors are then free."""
        self.uses.clear()
        self.passes.clear()

    def _before(self, unit: Unit) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            if module is not unit.module or self.paused or not torch.is_grad_enabled():
                return
            given = tensors_in((args, kwargs))
            if given and draws(module):
                self._random[unit.name] = random_of(given[0].device).get_rng_state()
            if self.lean and unit.ghost is not None:
                self._resting[unit.name] = _at_rest(module, given)

        return before

    def _hook_of(self, unit: Unit) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
            if module is not unit.module:  # A copy of the model has copies of the hooks.
                return
            for weight in self._resting.pop(unit.name, []):
                weight.requires_grad_()
            state = self._random.pop(unit.name, None)
            outputs = tensors_in(output)
            if self.paused or not any(each.requires_grad for each in outputs):
                return
            args, kwargs = tree_map_only(Tensor, torch.detach, (args, kwargs))
            versions = [tensor._version for tensor in tensors_in((args, kwargs))]
            use = Use(unit, Call(args, kwargs, [None] * len(outputs), state), versions)
            for place, each in enumerate(outputs):
                if each.requires_grad:
                    each.register_hook(self._collector(use, place))

        return hook

    def _collector(self, use: Use, place: int) -> Callable[[Tensor], None]:
        def collect(grad: Tensor) -> None:
            if all(each is None for each in use.call.grads):
                self.uses.append(use)
            use.call.grads[place] = grad.detach()
            self.passes.add(torch._C._current_graph_task_id())

        return collect


def _at_rest(module: nn.Module, given: list[Tensor]) -> list[Tensor]:
    """Let the matrices of a module need no gradient, if its output needs one without them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    weights = [p for p in trained if p.dim() > 1]
    if len(weights) < len(trained) or any(each.requires_grad for each in given):
        for weight in weights:
            weight.requires_grad_(False)
        return weights
    return []


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
