"""Keras on torch: a `Clipper` over the gradients that the optimizer was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...method.policy import AnyPolicy
from ...torch.clipper import Clipper
from ...torch.step.parameters import empty_like_units
from ...torch.tensors.gradients import Gradients
from .side import NUMBERS, Optimizer, Settings, Store, Variable, refuse_other_rules
from .stored import load_nested, save_nested
from .units import units_last

__all__ = ["OnTorch", "make"]


class _Skipped(Exception):
    """Ends the application of gradients that must not reach the weights."""


class _Owner:
    """A weight and the gradient that an optimizer was given for it, which is not its `.grad`."""

    def __init__(self, weight: Tensor, grad: Tensor | None) -> None:
        self.grad = grad
        self._weight = weight

    def detach(self) -> Tensor:
        return self._weight.detach()


class OnTorch:
    """See `Side`; and the attachment of its `clipper`.

    Attributes:
        clipper: the clipper, for `gradclip.torch.record` among others.
    """

    scaled_because = "an optimizer of Keras takes no factor"
    in_step = False

    def __init__(
        self,
        optimizer: Optimizer,
        settings: Settings,
        names: Sequence[str],
        variables: Sequence[Variable],
    ) -> None:
        self._optimizer = optimizer
        self._variables = variables
        self._is_attached = True
        self.names: tuple[str, ...] = tuple(names)
        self.present: Sequence[int] = ()
        self.clipper: Clipper = Clipper(
            [(name, v.value) for name, v in zip(names, variables, strict=True)],
            units_last(settings.policy),
            nonfinite=settings.nonfinite,
            max_skips=settings.max_skips,
        )
        self.clipper.set_attachment(self)

    def refuse_policy(self, policy: AnyPolicy) -> None:
        """Accept each policy that `clipped` accepts."""

    def remove(self) -> None:
        """Let the gradients through as they are from now on."""
        self._is_attached = False

    @torch.no_grad()
    def clip(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Clip in place what is the weight's own `.grad`, and a copy of any other gradient."""
        if not self._is_attached:
            return list(grads)
        weights = [variable.value for variable in self._variables]
        owners = [_Owner(weight, None) for weight in weights]
        for place, grad in zip(self.present, grads, strict=True):
            owners[place].grad = grad if weights[place].grad is grad else grad.clone()
        tensors = [
            empty_like_units(weight) if owner.grad is None else owner.grad
            for owner, weight in zip(owners, weights, strict=True)
        ]
        here = [owner.grad is not None for owner in owners]
        decision = self.clipper.decide(Gradients(tensors, self.names, owners, here))
        decision.apply()
        result = self.clipper.finish(decision)
        if self.clipper.may_skip and bool(result.skipped):
            raise _Skipped
        found = [owners[place].grad for place in self.present]
        return [grad for grad in found if grad is not None]

    def step(self, apply: Callable[[], None]) -> None:
        """See `Side`: a skip leaves `apply` before anything is changed."""
        optimizer = self._optimizer
        try:
            apply()
        except _Skipped:
            if optimizer.gradient_accumulation_steps:
                for sums in optimizer._accumulated_gradients:
                    if sums is not None:  # Keras itself multiplies by 0, which leaves a NaN.
                        sums.value.zero_()
                # Back to where the accumulation of this step began.
                optimizer._iterations.assign_sub(optimizer.gradient_accumulation_steps - 1)

    def counts(self) -> Mapping[str, int]:
        """See `Side`."""
        clipper = self.clipper
        return {
            "steps": clipper.steps,
            "clipped_steps": clipper.clipped,
            "skipped_steps": clipper.skipped,
        }

    def last(self) -> Mapping[str, float] | None:
        """See `Side`."""
        result = self.clipper.last
        if result is None:
            return None
        flags = {name: int(getattr(result, name)) for name in ("clipped", "skipped")}
        return {name: float(getattr(result, name)) for name in NUMBERS} | flags

    def norms(self) -> list[float]:
        """See `Side`."""
        assert self.clipper.last is not None
        return self.clipper.last.norms.tolist()

    def variables(self) -> Mapping[str, Variable]:
        """See `Side`."""
        return dict(zip(self.names, self._variables, strict=True))

    def save(self, store: Store) -> None:
        """See `Side`."""
        save_nested(_changed(self.clipper.state_dict(), Tensor, lambda t: t.cpu().numpy()), store)

    def load(self, store: Store) -> None:
        """See `Side`."""
        saved = load_nested(store)
        if saved is not None:
            refuse_other_rules(self.clipper.policy, saved["names"], self.names)
            saved["names"] = list(self.names)
            self.clipper.load_state_dict(_changed(saved, np.ndarray, torch.from_numpy))


def make(
    optimizer: Optimizer, settings: Settings, names: Sequence[str], variables: Sequence[Variable]
) -> OnTorch:
    """Return the clipping of an optimizer that is built."""
    return OnTorch(optimizer, settings, names, variables)


def _changed(data: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return nested data with each object of a kind changed."""
    if isinstance(data, dict):
        return {key: _changed(value, kind, change) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(_changed(value, kind, change) for value in data)
    return change(data) if isinstance(data, kind) else data
