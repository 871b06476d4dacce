"""What a forward and a backward pass leave of each module: inputs, and gradients of outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from ...errors import PolicyError
from .attention import attention, draws, random_of
from .call import Call, tensors_in
from .forms import Form, Rows
from .ghost import Ghost, ghost_of, has_batch, settled
from .recurrent import recurrent
from .root import LossRoot

__all__ = ["Kept", "Unit", "Use", "units_of"]


@dataclass(frozen=True)
class Unit:
    """A module whose parameters are looked after as one.

    Attributes:
        name: the module's name in the model.
        module: the module.
        ghost: the function that knows the module's gradients; None asks `vmapped`.
        alone: whether no other unit has a parameter of this one.
    """

    name: str
    module: nn.Module
    ghost: Ghost | None
    alone: bool = True


@dataclass
class Use:
    """One call of a unit.

    Attributes:
        unit: what was called.
        call: with what; a backward pass fills in the gradients of the output.
        versions: the version of each tensor in args and kwargs at the call.
        forms: the gradients, if their forms were made at once; the call may have shapes alone then.
    """

    unit: Unit
    call: Call
    versions: list[int]
    forms: dict[str, Form] | None = None

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

    @property
    def overwritten(self) -> bool:
        """Whether somebody has changed an input in place since the call."""
        given = tensors_in((self.call.args, self.call.kwargs))
        return self.versions != [tensor._version for tensor in given]

    @torch.no_grad()
    def write_out(self) -> None:
        """Write the gradients out if they are smaller than the tensors that were kept; free these.

        What runs again, or is to be refused, is left for later.
        """
        unit, call = self.unit, self.call
        if unit.ghost is None or unit.ghost in (attention, recurrent):
            return
        if self.overwritten or not has_batch(unit.module, self.first):
            return
        forms = {name: settled(form) for name, form in unit.ghost(unit.module, call).items()}
        self.forms = forms
        if all(isinstance(form, Rows) for form in forms.values()):
            self.call = Call(
                (_shape(self.first),), {}, [g if g is None else _shape(g) for g in call.grads]
            )
            self.versions = [0]

    def refuse_overwritten(self) -> None:
        """Refuse an input that somebody has changed in place since the call."""
        if self.overwritten:
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
        root: what is to look at the loss in the next backward pass; None for nothing.
    """

    uses: list[Use] = field(default_factory=list)
    passes: set[int] = field(default_factory=set)
    paused: bool = False
    lean: bool = False
    root: LossRoot | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)
    _random: dict[str, Tensor] = field(default_factory=dict)
    _resting: dict[str, list[Tensor]] = field(default_factory=dict)
    _calls: dict[str, int] = field(default_factory=dict)

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
        self._calls.clear()

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
            self._calls[unit.name] = self._calls.get(unit.name, 0) + 1
            use = Use(unit, Call(args, kwargs, [None] * len(outputs), state), versions)
            for place, each in enumerate(outputs):
                if each.requires_grad:
                    each.register_hook(self._collector(use, place))

        return hook

    def _collector(self, use: Use, place: int) -> Callable[[Tensor], None]:
        def collect(grad: Tensor) -> None:
            if self.root is not None and not self.uses:
                self.root.look()
            if all(each is None for each in use.call.grads):
                self.uses.append(use)
            use.call.grads[place] = grad.detach()
            self.passes.add(torch._C._current_graph_task_id())
            if use.unit.alone and self._calls.get(use.unit.name) == 1 and len(use.call.grads) == 1:
                use.write_out()

        return collect


def _at_rest(module: nn.Module, given: list[Tensor]) -> list[Tensor]:
    """Let the parameters of a module need no gradient, as far as its output still needs one."""
    resting: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not any(each.requires_grad for each in given):
        matrices = [p for p in resting if p.dim() > 1]
        resting = matrices if len(matrices) < len(resting) else []
    for parameter in resting:
        parameter.requires_grad_(False)
    return resting


def _shape(values: Tensor) -> Tensor:
    """Return a tensor of this shape that takes no memory."""
    return values.new_zeros(()).expand(values.shape)


def units_of(model: nn.Module) -> list[Unit]:
    """Return the modules to watch: together they have all parameters, and none lies in another.

    A module that has parameters of its own and that no function knows is watched with everything in
    it.
    """
    units = list(_units(model, "", set()))
    owners = Counter(p for unit in units for p in set(unit.module.parameters()))
    return [
        replace(unit, alone=all(owners[p] == 1 for p in unit.module.parameters())) for unit in units
    ]


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
