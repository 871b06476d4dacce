"""Gradients that are scaled before all of a backward are known: by the factors of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...arrays import Memory
from ...engine.result import ClipResult
from ...engine.run import NonFinite, init, run
from ...errors import PolicyError
from ...method.measure import combine
from ...method.plan import Plan
from ..tensors.gradients import Gradients
from ..tensors.known_norms import KnownNorms
from ..tensors.memory import alike
from .joined import result_of_scaling
from .parameters import Parameters
from .recall import memory_for_others, origins, saved_memory, sound_tensor

__all__ = ["Ahead"]


@dataclass
class Ahead:
    """A policy over the norms of all gradients, and what one backward leaves for the next.

    Attributes:
        plan: the stages of the policy; none if the policy looks at each tensor by itself.
        names: of all parameters.
        sizes: shape (gradients,), their numbers of values.
        order: the p of all norms.
        nonfinite: what the engine does with inf and NaN.
        memory: what the plan remembers.
        factors: shape (gradients,), those of the last backward; None before the first.
        limit: on the norm of all gradients, shape (), NaN if there is not one; None as `factors`.
    """

    plan: Plan
    names: tuple[str, ...]
    sizes: Tensor
    order: float
    nonfinite: NonFinite
    memory: Memory = None
    factors: Tensor | None = None
    limit: Tensor | None = None

    def scale(
        self, grads: Gradients, members: Sequence[int], before: Sequence[Tensor], step: int
    ) -> ClipResult:
        """Scale gradients in place: by the last factors, and within the limit.

        Args:
            grads: of one optimizer; mutated.
            members: their places among those of all optimizers.
            before: the norms of those that this backward has scaled already.
            step: how many backwards came before this one.
        """
        norms = torch.as_tensor(grads.norms(range(len(members)), self.order))
        if self.factors is None or self.limit is None:
            self.factors, self.limit = self._first_factors(norms.device, step)
        own = combine(norms, self.order, torch_xp)
        totals = [total.to(own.device) for total in before]
        so_far = combine(torch.stack([own, *totals]), self.order, torch_xp)
        limit = self.limit.to(own.device)
        over = so_far > limit  # Not if there is no one limit, which is NaN then.
        cap = torch.where(over, limit / torch.where(over, so_far, 1.0), 1.0)
        factors = self.factors[list(members)].to(own.device).minimum(cap)
        skipped = ~torch.isfinite(so_far) & (self.nonfinite != "propagate")
        factors = torch.where(skipped, 1.0, factors)
        grads.scale(factors.numpy() if grads.host else factors)
        return result_of_scaling(norms, factors, self.order, skipped, grads)

    def look_back(self, norms: Tensor, present: Sequence[bool], step: int) -> None:
        """Run the policy on the norms of a backward, which are all known now.

        Args:
            norms: shape (gradients,), before they were scaled; not mutated.
            present: which gradients there were.
            step: how many backwards came before this one.
        """
        known = self._known(norms, present)
        fresh = init(self.plan, known)
        memory = fresh if self.memory is None else alike(self.memory, fresh)
        self.memory, factors, result = run(
            self.plan, memory, known, nonfinite=self.nonfinite, step=step
        )
        self.factors, self.limit = factors.expand(len(self.names)), result.limit

    def follow(self, old: Ahead, before: Parameters, now: Parameters) -> None:
        """Go on from what was known of other parameters.

        Args:
            old: not mutated.
            before: the parameters of that one.
            now: the parameters of this one.
        """
        self.limit = old.limit
        if old.memory is not None:
            self.memory = memory_for_others(old.memory, (old.plan, before), (self.plan, now))
        if old.factors is not None:
            places = origins(before, now)
            self.factors = torch.ones(
                len(self.names), dtype=torch.float64, device=old.factors.device
            )
            self.factors[list(places)] = old.factors[list(places.values())]

    def saved(self, memory: object, factors: object, limit: object, params: Parameters) -> Ahead:
        """Return one that goes on from what was saved; refuse what this policy never leaves.

        Args:
            memory, factors, limit: whatever was saved; not mutated.
            params: the parameters.

        Raises:
            PolicyError: names the entry that is wrong.
        """
        kept = saved_memory(memory, self.plan, params)
        if factors is None and limit is None:
            return replace(self, memory=kept, factors=None, limit=None)
        one = torch.zeros((), dtype=torch.float64)
        found = sound_tensor("factors", factors, one.expand(len(self.names)))
        bound = sound_tensor("limit", limit, one)
        unsound = found < 0
        if self.nonfinite != "propagate":
            unsound |= ~torch.isfinite(found)
        if bool(unsound.any()):
            raise PolicyError.of("factors", found, "a factor is a finite number >= 0")
        if bool(bound < 0):
            raise PolicyError.of("limit", bound, "a limit is never negative")
        return replace(self, memory=kept, factors=found, limit=bound)

    def _first_factors(self, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        """Ask the policy for its limit while no gradient is known."""
        nothing = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        known = self._known(nothing, [False] * len(nothing))
        _, _, result = run(
            self.plan, init(self.plan, known), known, nonfinite="propagate", step=step
        )
        return torch.ones_like(nothing), result.limit

    def _known(self, norms: Tensor, present: Sequence[bool]) -> KnownNorms:
        return KnownNorms(norms, self.order, self.names, self.sizes.to(norms.device), present)
