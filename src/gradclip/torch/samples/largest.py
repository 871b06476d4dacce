"""The samples of each step with the largest gradient norms, beside a training that goes on.

Nothing here changes a gradient, and no fault here ends a training: what fails is left out, with a
word about it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.batchnorm import _BatchNorm

from .call import tensors_in
from .groups import Group, groups_of, units_with_formula
from .guarded import Guarded, Hook, is_checkpointed, is_compiled
from .kept import Kept, Unit, Use

__all__ = ["Ids", "Largest", "LargestSamples", "When"]

When = Literal["always", "spikes"]
"""At which steps the norms are computed: at all, or at those whose own norm is unusual."""

Ids: TypeAlias = Tensor | Sequence[int | str]
"""Who the samples are, one id for each: places in the data set, or names."""

EMPTY = 3
"""After so many steps in a row without a norm, no more are waited for."""

SPIKE, WINDOW, LEAST = 2.0, 50, 10
"""A norm of this many times the median of so many norms before, of some at least, is unusual."""


@dataclass(frozen=True)
class Largest:
    """The samples of one step with the largest gradient norms; the tensors are on the device.

    A norm is of what the sample adds to `.grad`, so for a loss that is a mean over B samples it is
    1/B of the norm that the sample's own loss has.

    Attributes:
        of: how many samples there were, of all micro-batches.
        at: shape (k,), the places of the samples; micro-batches follow one another.
        norms: shape (k,), the norms, the largest first; NaN counts as the largest.
        median: the median of all norms.
        total: the root of the sum of all squared norms.
        ids: for all samples, or None.
    """

    of: int
    at: Tensor
    norms: Tensor
    median: Tensor
    total: Tensor
    ids: list[int | str] | None

    @property
    def tensors(self) -> list[Tensor]:
        """All numbers that are on the device."""
        return [self.at, self.norms, self.median, self.total]

    def row(self, numbers: Sequence[Sequence[float]]) -> dict[str, object]:
        """Return what a record has of these samples.

        Args:
            numbers: the values of `tensors`.
        """
        at = [int(place) for place in numbers[0]]
        norms = [_short(norm) for norm in numbers[1]]
        found: dict[str, object] = {"of": self.of, "at": at, "norms": norms}
        if self.ids is not None:
            found["ids"] = [self.ids[place] for place in at]
        return {**found, "median": _short(numbers[2][0]), "total": _short(numbers[3][0])}


class LargestSamples:
    """Measures the norm of each sample's gradient in every backward pass of a model.

    Only modules with a formula count: no module runs again. Other parameters are left out of the
    norms, as are modules under a checkpoint, whose inputs shall not be kept.

    Args:
        model: its modules get hooks until `detach`. The first axis of their inputs is the batch.
        params: those whose gradients count; other parts of the model are left alone.
        most: how many samples are kept of each step, ≥ 1.
        tell: called with a name and a sentence about what cannot be had; each name once.
        ids: called with the number of samples at the end of each backward pass, for their ids.
        when: "spikes" computes norms only where the norm of the step is unusual, and keeps what
            they need until then; on an accelerator each step then waits for its norm. In a training
            with several backward passes a step this becomes "always".
    """

    def __init__(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        most: int,
        tell: Callable[[str, str], None],
        ids: Callable[[int], Ids | None] = lambda _: None,
        when: When = "always",
    ) -> None:
        self.most = most
        self._waits = when == "spikes"
        self._waiting: _Pass | None = None
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._tell = tell
        self._told: set[str] = set()
        self._ids_of = ids
        self._given: list[int | str] = []
        self._passes: list[tuple[Tensor, list[int | str] | None]] = []
        self._queued: set[int] = set()
        self._marks: dict[Tensor, tuple[int, int]] = {}
        self._trained: dict[Tensor, str] = {}
        self._covered: set[Tensor] = set()
        self._failures: dict[str, str] = {}
        self._why_empty = "no backward pass went through its modules: they may be compiled"
        self._empty = 0
        self.off: bool = False
        """Whether the measuring has stopped, for the rest of the training."""
        self._kept = Kept()
        self._groups: list[Group] = []
        self._group_of: dict[str, Group] = {}
        self._begin(model, {*params})

    def take(self, norm: Tensor) -> Largest | None:
        """Return the largest of the samples since the last call, and forget them all.

        Args:
            norm: of the whole gradient, of the step that now comes.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._empty = 0
            if self._is_unusual(float(norm)):
                self._try(waiting)
            elif not self.off:
                self._given.clear()
                self._marks.clear()
                return None
        passes, self._passes = self._passes, []
        given, self._given = self._given, []
        self._marks.clear()
        if self.off:
            return None
        if not passes:
            self._empty += 1
            if self._empty >= EMPTY:
                self._stop(self._why_empty)
            return None
        try:
            self._empty = 0
            self._say_what_is_left_out()
            return self._largest(passes, given)
        except Exception as fault:
            self._stop(_said(fault))
            return None

    def give_ids(self, ids: Ids) -> None:
        """Take the ids of samples of the present step; several calls follow one another."""
        self._given += _listed(ids)

    def detach(self) -> None:
        """Remove the hooks, and forget what they kept."""
        self._kept.detach()
        self._passes.clear()
        self._waiting = None

    def _is_unusual(self, norm: float) -> bool:
        usual = sorted(self._usual)
        if math.isfinite(norm):
            self._usual.append(norm)
        return not math.isfinite(norm) or (
            len(usual) >= LEAST and norm > SPIKE * usual[len(usual) // 2]
        )

    def _begin(self, model: nn.Module, params: set[Tensor]) -> None:
        """Put a hook on each module that has a formula."""
        units = units_with_formula(model, params)
        named = model.named_parameters()
        self._trained = {p: name for name, p in named if p.requires_grad and p in params}
        if any(isinstance(module, _BatchNorm) for module in model.modules()):
            self._say(
                "samples-approximate",
                "BatchNorm mixes the samples: the norms are of the rows of the gradient, and leave "
                "out what a sample does to the others",
            )
        if is_compiled(model):
            self._stop("the model is compiled, and hooks would change how")
            return
        if not units:
            self._stop("no module of the model has a formula for its samples' gradients")
            return
        self._groups = groups_of(units)
        self._group_of = {unit.name: group for group in self._groups for unit in group.units}
        self._watch(units)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.distributed.get_world_size()
            if count > 1:
                self._say(
                    "samples-of-one-process",
                    f"the samples are those of this process alone, one of {count}",
                )

    def _watch(self, units: Sequence[Unit]) -> None:
        """Put the hooks on the modules, each within a guard."""
        kinds = ("_forward_pre_hooks", "_forward_hooks")
        places = [(vars(unit.module)[kind], kind) for unit in units for kind in kinds]
        before = [{*hooks} for hooks, _ in places]
        self._kept.watch([*units])
        for (hooks, kind), known in zip(places, before, strict=True):
            for key in hooks.keys() - known:
                hooks[key] = Guarded(hooks[key], self, is_last=kind == "_forward_hooks")

    # ---- in the passes ----------------------------------------------------------------------

    def on_call(self, hook: Hook, is_last: bool, module: nn.Module, *call: Any) -> None:
        """Keep one call of a module, unless a checkpoint is about to run it again."""
        if self.off or not torch.is_grad_enabled():
            return
        if is_checkpointed():
            self._why_empty = "all of its modules are under a checkpoint"
            return
        if (self._passes or self._waiting) and next(module.parameters()).grad is None:
            self._passes.clear()  # What came before was for another model, and has been cleared.
            self._waiting = None
        hook(module, *call)
        for each in tensors_in(call[-1]) if is_last else ():
            if each.requires_grad:
                each.register_hook(self._on_gradient)

    def fail(self, fault: Exception) -> None:
        """Stop for good, since something of ours does not work here."""
        self._stop(_said(fault))

    def _on_gradient(self, _grad: Tensor) -> None:
        """Ask to be called at the end of this backward pass, once."""
        task = torch._C._current_graph_task_id()
        if task in self._queued or self.off:
            return
        self._queued.add(task)
        Variable._execution_engine.queue_callback(self._end_of_pass)  # type: ignore[attr-defined]

    def _end_of_pass(self) -> None:
        kept = self._kept.take()
        # Another backward pass over the same graph may come, and fill in other gradients.
        uses = [replace(use, call=replace(use.call, grads=[*use.call.grads])) for use in kept]
        for use in kept:
            use.call.grads[:] = [None] * len(use.call.grads)
        self._kept.clear()
        self._queued.clear()
        try:
            found = self._pass_of(uses)
        except Exception as fault:
            self._stop(_said(fault))
            return
        if found is None:
            return
        if self._waits and self._waiting is None and not self._passes:
            self._waiting = found
            return
        if self._waiting is not None:
            self._waits = False
            earlier, self._waiting = self._waiting, None
            text = "a step has several backward passes: the samples are measured in each"
            self._say("samples-always", text)
            self._try(earlier)
        self._try(found)

    def _pass_of(self, uses: Sequence[Use]) -> _Pass | None:
        """Return what a backward pass has left; None if it added to no `.grad`."""
        uses = [use for use in uses if not self._group_of[use.unit.name].failed]
        if not uses or not self._has_accumulated(uses):
            return None
        batch = _most_common(use.first_axis for use in uses)
        found = self._ids_of(batch)
        ids = None if found is None else _listed(found)
        return _Pass(uses, batch, ids if ids is not None and len(ids) == batch else None)

    def _try(self, found: _Pass) -> None:
        try:
            with torch.no_grad():
                self._measure(found)
        except Exception as fault:
            self._stop(_said(fault))

    def _measure(self, found: _Pass) -> None:
        """Add the norms of one backward pass."""
        uses, batch, ids = found
        squares: list[Tensor] = []
        for group in self._groups:
            mine = [use for use in uses if self._group_of[use.unit.name] is group]
            other = next((use for use in mine if use.first_axis != batch), None)
            if other is not None:
                why = f"its input begins with {other.first_axis}, not with the batch of {batch}"
                self._fail(group, why)
            elif mine:
                try:
                    squares += group.squares(mine)
                    self._covered.update(group.parameters)
                except Exception as fault:
                    self._fail(group, _said(fault))
        if squares:
            self._passes.append((torch.stack(squares).sum(0), ids))

    def _has_accumulated(self, uses: Sequence[Use]) -> bool:
        """Whether the pass added to `.grad`: `torch.autograd.grad` does not."""
        for parameter in uses[0].unit.module.parameters():
            if parameter.requires_grad:
                grad = parameter.grad
                mark = None if grad is None else (id(grad), grad._version)
                if mark is None or self._marks.get(parameter) == mark:
                    return False
                self._marks[parameter] = mark
                return True
        return True

    # ---- what is said -----------------------------------------------------------------------

    def _largest(
        self, passes: Sequence[tuple[Tensor, list[int | str] | None]], given: list[int | str]
    ) -> Largest | None:
        squares = torch.cat([each.to(passes[0][0].device) for each, _ in passes])
        if not len(squares):
            return None
        ids: list[int | str] | None = given or None
        if given and len(given) != len(squares):
            text = f"{len(given)} ids were given for {len(squares)} samples, and are left out"
            self._say("samples-without-ids", text)
            ids = None
        elif not given and all(own is not None for _, own in passes):
            ids = [id for _, own in passes for id in own or ()]
        norms = squares.sqrt()
        top = norms.topk(min(self.most, len(norms)))
        return Largest(
            of=len(norms),
            at=top.indices,
            norms=top.values,
            median=norms.nanmedian(),
            total=squares.sum().sqrt(),
            ids=ids,
        )

    def _fail(self, group: Group, why: str) -> None:
        """Leave a group out from now on, so that the norms of all steps are of the same modules."""
        group.failed = True
        self._failures.update(dict.fromkeys((unit.name for unit in group.units), why))
        self._why_empty = f"{group.units[0].name}: {why}"

    def _say_what_is_left_out(self) -> None:
        """Say, at the first step with norms, which parameters are not in them."""
        left = [name for p, name in self._trained.items() if p not in self._covered]
        if not left or "samples-partial" in self._told:
            return
        missing = sum(p.numel() for p in self._trained if p not in self._covered)
        share = missing / sum(p.numel() for p in self._trained)
        names = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        why = "their modules have no formula, were not called, or are under a checkpoint"
        if self._failures:
            why = "; ".join(f"{name}: {fault}" for name, fault in [*self._failures.items()][:3])
        text = f"the norms of the samples leave out {share:.0%} of the parameters, {names}: {why}"
        self._say("samples-partial", text)

    def _stop(self, why: str) -> None:
        self.off = True
        self.detach()
        self._say("samples-stopped", f"the norms of the samples cannot be had: {why}")

    def _say(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._tell(name, text)


class _Pass(NamedTuple):
    """One backward pass: the calls of modules, the number of samples, and their ids."""

    uses: list[Use]
    batch: int
    ids: list[int | str] | None


def _most_common(sizes: Iterable[int]) -> int:
    return Counter(sizes).most_common(1)[0][0]


def _listed(ids: Ids) -> list[int | str]:
    """Return ids as JSON has them."""
    values: Iterable[Any] = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    return [each if isinstance(each, str) else int(each) for each in values]


def _short(norm: float) -> float:
    """Return a norm with six digits, which are enough to rank samples."""
    return float(f"{norm:.6g}")


def _said(fault: Exception) -> str:
    first = str(fault).strip().partition("\n")[0]
    return first if first else type(fault).__name__
