"""Clipping of the script's own: what the gradients were before it, and what it left of them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ...engine.result import ClipResult
from ...method.measure import combine
from ...method.policy import AnyPolicy, Policy
from ..clipper import Clipper
from ..processes.placements import any_sharded
from ..processes.sharded import gradients
from ..tensors.gradients import Gradients

__all__ = ["Clip", "OwnClipping"]

# So many parameters that no step has taken are kept; beyond it those of models that are gone go.
_MOST = 4096


@dataclass(frozen=True, eq=False)
class Clip:
    """One call of the script's; another call is another clip.

    Attributes:
        name: of the function.
        limit: as given; a tensor stays on its device.
    """

    name: str
    limit: float | Tensor

    @property
    def only_measures(self) -> bool:
        """Whether the limit is infinite, so that no finite gradient is clipped."""
        return isinstance(self.limit, float) and not self.limit < math.inf


class _Stamp(NamedTuple):
    """A gradient as it is now: which tensor it is, and how often it was written."""

    grad: int
    version: int

    @classmethod
    def of(cls, param: Tensor) -> _Stamp:
        grad = param.grad
        return cls(0, 0) if grad is None else cls(id(grad), grad._version)


@dataclass(frozen=True, eq=False)
class _Measured:
    """The norms of one call, on the device of the gradients."""

    norms: Tensor
    order: float


class _Before(NamedTuple):
    """What a parameter's gradient was before the first clip, and what it is after the last.

    Gradients are not kept alive. While the first and the last of a call live, no id came back.
    """

    measured: _Measured
    place: int
    clips: tuple[Clip, ...] = ()
    stamp: _Stamp | None = None
    ends: tuple[TensorWeakRef, ...] = ()

    @property
    def is_alive(self) -> bool:
        """Whether the gradients of the last call are still there."""
        return all(end() is not None for end in self.ends)

    def is_of(self, param: Tensor) -> bool:
        """Whether nobody wrote to the gradient since."""
        return self.is_alive and self.stamp == _Stamp.of(param)


@dataclass
class _Found:
    """What is known of the gradients of one step of a clipper."""

    before: list[_Before | None]
    is_whole: bool
    is_used: bool = False
    coef: Tensor | None = None

    @property
    def calls(self) -> set[Clip]:
        """All calls that clipped one of these gradients."""
        return {clip for each in self.before if each is not None for clip in each.clips}


class OwnClipping:
    """Measures gradients before the script clips them, and gives the norms to the step.

    Each parameter has its own norm, so that calls for a part of a model, or for more than one
    optimizer has, add up. Norms stay on their device. A gradient that somebody writes to between
    the clipping and the step is measured at the step.

    Args:
        policy: what gradclip clips by; its norms are of the same order.

    Attributes:
        was_changed: the name of a function whose gradients were written to before the step.
    """

    def __init__(self, policy: AnyPolicy | None) -> None:
        self._order = _order_of(policy)
        self._before: dict[int, _Before] = {}
        self._found: weakref.WeakKeyDictionary[Clipper, _Found] = weakref.WeakKeyDictionary()
        self.was_changed: str | None = None

    @torch.no_grad()
    def begin(self, clip: Clip, params: Sequence[Tensor]) -> None:
        """Measure gradients that the script is about to clip, unless an earlier call has.

        Args:
            clip: the call.
            params: what it is for; those without a gradient are left out.
        """
        here = list({id(p): p for p in params if p.grad is not None}.values())
        known = [self._before.get(id(p)) for p in here]
        if not all(b is not None and b.is_of(p) for b, p in zip(known, here, strict=True)):
            measured = _measure(here, list(params), self._order)
            if measured is None:
                return
            known = [
                b if b is not None and b.is_of(p) else _Before(measured, i)
                for i, (b, p) in enumerate(zip(known, here, strict=True))
            ]
        self._drop_the_dead()
        for param, before in zip(here, known, strict=True):
            assert before is not None
            clips = before.clips if clip.only_measures else (*before.clips, clip)
            self._before[id(param)] = before._replace(clips=clips)

    def end(self, params: Sequence[Tensor]) -> None:
        """Note what the gradients are after the call."""
        grads = [param.grad for param in params if param.grad is not None]
        ends = tuple(TensorWeakRef(grad) for grad in (*grads[:1], *grads[-1:]))
        for param in params:
            if (before := self._before.get(id(param))) is not None:
                self._before[id(param)] = before._replace(stamp=_Stamp.of(param), ends=ends)

    def forget(self, params: Iterable[Tensor]) -> None:
        """Forget what was measured: a loss scaler has divided gradients that were clipped before.

        torch does not count that as a write.
        """
        for param in params:
            before = self._before.pop(id(param), None)
            if before is not None and before.clips and before.is_of(param):
                self.was_changed = before.clips[-1].name

    def match(self, clipper: Clipper, *, ahead: bool, scaled: bool = False) -> None:
        """Find what is known of the gradients that a step now begins with.

        Args:
            clipper: about to decide on them.
            ahead: the step is only looked at, and decided on later.
            scaled: the gradients are still multiplied by a loss scale, which the step takes off.
        """
        self._found.pop(clipper, None)
        if not self._before:
            return
        take = self._before.get if ahead else self._before.pop
        kept = [take(id(p), None) for p in clipper.params]
        found: list[_Before | None] = []
        for param, before in zip(clipper.params, kept, strict=True):
            if before is not None and (scaled or not before.is_of(param)):
                is_there = before.stamp is not None and before.stamp.grad == id(param.grad)
                if before.is_alive and is_there:
                    self.was_changed = before.clips[-1].name if before.clips else None
                before = None
            found.append(before)
        # Of parameters that other processes have, nothing is known here.
        if any(found) and not any(p.is_meta for p in clipper.params):
            pairs = zip(clipper.params, found, strict=True)
            whole = all(each is not None or p.grad is None for p, each in pairs)
            self._found[clipper] = _Found(found, whole)

    @torch.no_grad()
    def restore(self, clipper: Clipper, result: ClipResult) -> ClipResult:
        """Return the result of a step as if the script's clipping were a part of it; once.

        Args:
            clipper: whose result it is; `match` was called before it decided.
            result: of the gradients that the script has left.
        """
        found = self._found.get(clipper)
        if found is None or found.is_used:
            return result
        found.is_used = True
        orders = {each.measured.order for each in found.before if each is not None}
        left = result.norms
        if len(left) != len(found.before) or not _is_of_order(result, orders):
            return result
        norms = _gathered(found.before, left)
        order = orders.pop()
        total = _total(norms, order).to(result.total_norm)
        clips = found.calls
        if clips:
            found.coef = _ratio(result.total_norm, total)
        by_norm = all("norm" in clip.name for clip in clips) and order == 2.0
        cosine, removed = _change(norms, left, total, result, by_norm)
        return replace(
            result,
            total_norm=total,
            norms=norms,
            coef=_ratio(result.clipped_norm, total),
            clipped=result.clipped | (result.total_norm < total),
            cosine=cosine,
            removed=removed,
            limit=_limit(found, result) if clipper.measures_only else result.limit,
        )

    def keys(self, clipper: Clipper) -> Mapping[str, float | Tensor | None]:
        """Return what the row of a step has in addition, if the script clipped for it."""
        found = self._found.get(clipper)
        if found is None or found.coef is None:
            return {}
        limits = {clip.limit for clip in found.calls}
        return {
            "script_limit": limits.pop() if len(limits) == 1 else None,
            "script_coef": found.coef,
        }

    def _drop_the_dead(self) -> None:
        if len(self._before) > _MOST:
            self._before = {k: b for k, b in self._before.items() if b.is_alive}


def _order_of(policy: AnyPolicy | None) -> float:
    """Return the order of the whole-gradient norm that a policy has in its record."""
    is_one = isinstance(policy, Policy) and policy.measure.scope == "global"
    return policy.measure.power if isinstance(policy, Policy) and is_one else 2.0


def _is_of_order(result: ClipResult, orders: set[float]) -> bool:
    """Whether the norms can stand beside those of a result, so far as names say."""
    return len(orders) == 1 and len(result.names) == len(result.norms)


def _measure(here: list[Tensor], given: list[Tensor], order: float) -> _Measured | None:
    """Return the norms of gradients, those of `here` in their order."""
    if not here:
        return None
    grads = [p.grad for p in here if p.grad is not None]
    if any_sharded(given):
        every = list({id(p): p for p in given}.values())
        spread = gradients(every)
        if spread is not None:
            norms = _tensor(spread.measure(order).norms)
            places = {id(p): i for i, p in enumerate(every)}
            norms = torch.stack([norms[places[id(p)]] for p in here])
            return _Measured(norms, order)
    found = Gradients(grads, [""] * len(grads), here)
    return _Measured(_tensor(found.measure(order).norms), order)


def _tensor(norms: object) -> Tensor:
    return norms if isinstance(norms, Tensor) else torch.from_numpy(np.array(norms, float))


def _gathered(before: Sequence[_Before | None], left: Tensor) -> Tensor:
    """Return the norm of each parameter before the clipping, else what it is now."""
    first = before[0]
    if first is not None and all(
        each is not None and each.measured is first.measured and each.place == i
        for i, each in enumerate(before)
    ):
        return first.measured.norms[: len(before)].to(left)
    rows = [
        now if each is None else each.measured.norms[each.place].to(left)
        for each, now in zip(before, left.unbind(), strict=True)
    ]
    return torch.stack(rows)


def _total(norms: Tensor, order: float) -> Tensor:
    if norms.device.type != "cpu":
        return torch.linalg.vector_norm(norms, order)
    with np.errstate(all="ignore"):
        return torch.as_tensor(np.asarray(combine(norms.numpy(), order, np)))


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return torch.where(before == 0, torch.ones_like(before), after / before)


def _change(
    norms: Tensor, left: Tensor, total: Tensor, result: ClipResult, by_norm: bool
) -> tuple[Tensor, Tensor]:
    """Return the cosine to the gradient before the script's clipping, and the share removed.

    Known where the script multiplied each gradient by a number, and gradclip kept the direction or
    the script did.
    """
    unknown = torch.full_like(total, math.nan)
    if not by_norm:
        same = (norms == left).all()
        return torch.where(same, result.cosine, unknown), torch.where(same, result.removed, unknown)
    product = total * result.total_norm
    own = (norms / total * left).sum() / torch.where(product == 0, 1.0, product / total)
    own = torch.where(own > 1 - 1e-6, 1.0, own)
    cosine = torch.where(result.cosine == 1, own, torch.where(own == 1, result.cosine, unknown))
    cosine = torch.where(result.total_norm == 0, result.cosine, cosine)
    coef = _ratio(result.clipped_norm, total)
    removed = ((1 - coef) ** 2 + 2 * coef * (1 - cosine)).sqrt()
    return cosine, removed


def _limit(found: _Found, result: ClipResult) -> Tensor:
    """Return the limit of the script's one call for all of these; else what a result has."""
    clips = found.calls
    if len(clips) != 1 or not found.is_whole:
        return result.limit
    (clip,) = clips
    if "norm" not in clip.name or any(each is not None and not each.clips for each in found.before):
        return result.limit
    if isinstance(clip.limit, Tensor):
        return clip.limit.to(result.limit)
    return torch.full_like(result.limit, clip.limit)
