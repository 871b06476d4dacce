"""`attach_in_backward`: clipping for optimizers that step while backward is still running.

There each parameter has an optimizer of its own, whose step is called as soon as the gradient is
complete, and frees it. No moment comes at which all gradients are there, so that whoever clips
after backward clips nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import array_api_compat.torch as torch_xp
import numpy as np
import torch
from torch import Tensor

from ..checks import choice, integer
from ..engine.ledger import Ledger
from ..engine.result import ClipResult
from ..engine.run import init, run
from ..errors import NonFiniteError, PolicyError
from ..method.measure import combine
from ..method.plan import AnyStage, Plan, Stage, WrappedStage, plan
from ..method.policy import AnyPolicy
from ..method.read import PolicyLike, as_policy, is_written
from ..method.response import Skip, ValueResponse
from .attach import named_parameters
from .clipper import as_tensors, empty_like_units
from .step.skip import keep_from_weights
from .tensors.gradients import Gradients
from .tensors.known_norms import KnownNorms
from .tensors.memory import alike, map_arrays

__all__ = ["InBackward", "attach_in_backward"]

_SCHEMA = 1
_EACH = ("element", "singular", "unit", "tensor")
Decision = Literal["skip", "raise", "propagate"]


def attach_in_backward(
    optimizers: Iterable[torch.optim.Optimizer],
    policy: PolicyLike,
    *,
    model: torch.nn.Module | None = None,
    nonfinite: Decision = "skip",
    max_skips: int = 10,
) -> InBackward:
    """Clip the gradients of optimizers that step inside of backward, as each of them steps.

    A policy that looks at each tensor by itself (per-tensor norms, units, values) does what it
    would do after backward. A norm of all gradients is not known before the last of them: the
    factor is then that of the backward before this one, or, if that is smaller, limit/n with n
    the norm of all gradients of this backward up to the one that is being clipped. So a tensor's
    clipped norm is never above the limit, but that of all together can be.

    Args:
        optimizers: each with parameters of its own, often one; each gets two hooks. They step
            once in a backward, on complete gradients (`register_post_accumulate_grad_hook`).
        policy: a policy, its text form, or rules by name.
        model: where the names of the parameters come from.
        nonfinite: what inf or NaN does. "skip": that step is left out, and, since the norm of all
            is then not finite either, under a policy with such a norm each later one of the same
            backward, too; what stepped before stays. "raise": the same, with an error out of
            backward. "propagate": computed on.
        max_skips: more backwards in a row with a skip than this raise an error.

    Returns:
        What does it: `.last` is the result of the last whole backward, `.exact` says whether it
        is what clipping after backward would have done, `.detach()` undoes this.

    Raises:
        PolicyError: an argument is wrong, a parameter belongs to two optimizers, or the policy
            needs all gradients at once in a way that their norms cannot stand for.

    Numerics: see `Clipper`. In the first backward only the norm so far is known.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
        >>> def step(parameter):
        ...     optimizers[parameter].step()
        ...     optimizers[parameter].zero_grad()
        >>> hooks = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
        >>> clipper = attach_in_backward(optimizers.values(), "norm:1.0", model=model)
        >>> model(torch.ones(8, 2)).pow(2).sum().mul(100).backward()
        >>> clipper.exact, bool(clipper.last.clipped)
        (False, True)

    Source: the pattern is that of torch's tutorial on optimizer steps in backward; the factor of
        the last step, bounded by what is known, is ours.
    """
    choice("nonfinite", nonfinite, ("skip", "raise", "propagate"))
    integer("max_skips", max_skips, low=0)
    return InBackward(list(optimizers), as_policy(policy), model, nonfinite, max_skips)


@dataclass
class _Part:
    """The parameters of one optimizer, and what its steps remember."""

    members: range
    params: tuple[Tensor, ...]
    plan: Plan
    memory: Any = None
    undo: ExitStack = field(default_factory=ExitStack)


class InBackward:
    """Clips in the steps of many optimizers; made by `attach_in_backward`.

    Attributes:
        policy: what is applied.
        names: of all parameters.
        exact: whether each gradient becomes what clipping after backward would have made of it.
        last: what the last whole backward did, over all optimizers that stepped in it.
        steps: how many whole backwards there were.
        handles: what `detach` removes.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        policy: AnyPolicy,
        model: torch.nn.Module | None,
        nonfinite: Decision,
        max_skips: int,
    ) -> None:
        self.policy = policy
        self.nonfinite: Decision = nonfinite
        self.max_skips = max_skips
        named = [named_parameters(optimizer, model) for optimizer in optimizers]
        flat = [pair for pairs in named for pair in pairs]
        _refuse_twice(flat)
        self.names = tuple(name for name, _ in flat)
        self._sizes = torch.tensor([float(p.numel()) for _, p in flat], dtype=torch.float64)
        self._plan = plan(policy, self.names)
        self.exact = all(_alone(stage) for layer in self._plan for stage in layer)
        self._order = 2.0 if self.exact else _order(self._plan, policy)
        self._parts = _parts(named, self._plan if self.exact else ())
        self.last: ClipResult | None = None
        self.steps = 0
        self._clipped: Any = 0
        self._skipped: Any = 0
        self._in_a_row: Any = 0
        self._memory: Any = None
        self._factors: Any = None
        self._limit: Any = None
        self._seen: dict[int, ClipResult] = {}
        self.handles: list[Any] = []
        for index, optimizer in enumerate(optimizers):
            before, after = self._hooks(index)
            self.handles.append(optimizer.register_step_pre_hook(before))
            self.handles.append(optimizer.register_step_post_hook(after))

    def __repr__(self) -> str:
        """Return what it is for."""
        return f"InBackward(<{len(self._parts)} optimizers>, {self.policy!r})"

    @property
    def clipped(self) -> int:
        """In how many backwards the policy changed a gradient; reads the device."""
        return int(self._clipped)

    @property
    def skipped(self) -> int:
        """In how many backwards a step was left out; reads the device."""
        return int(self._skipped)

    def detach(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered between two backwards, as plain tensors and primitives."""
        self._finish()
        arrays = {
            "memory": self._memory,
            "parts": [part.memory for part in self._parts],
            "factors": self._factors,
            "limit": self._limit,
        }
        return {
            "schema": _SCHEMA,
            "policy": str(self.policy),
            "names": list(self.names),
            "steps": self.steps,
            "clipped": self.clipped,
            "skipped": self.skipped,
            "in_a_row": int(self._in_a_row),
            **map_arrays(arrays, lambda array: torch.as_tensor(array).clone()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the state is not mutated.

        Raises:
            PolicyError: it was made by another schema, another policy or other parameters.
        """
        mine = {"schema": _SCHEMA, "policy": str(self.policy), "names": list(self.names)}
        for name, own in mine.items():
            saved = state.get(name)
            if saved != own and not (name == "policy" and is_written(self.policy, saved)):
                remedy = f"here it is {own!r}: rebuild this as it was when it was saved"
                raise PolicyError.of(name, saved, remedy)
        self.steps = int(state["steps"])
        self._clipped, self._skipped = int(state["clipped"]), int(state["skipped"])
        self._in_a_row = int(state["in_a_row"])
        arrays = map_arrays(
            {name: state[name] for name in ("memory", "parts", "factors", "limit")},
            lambda array: array.clone(),
        )
        self._memory, self._factors, self._limit = (
            arrays[name] for name in ("memory", "factors", "limit")
        )
        for part, its in zip(self._parts, arrays["parts"], strict=True):
            part.memory = its
        self._seen.clear()

    def _hooks(self, index: int) -> tuple[Any, Any]:
        """Return what runs before and after the steps of one optimizer."""

        @torch.compiler.disable
        @torch.no_grad()
        def before(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._clip(index, optimizer)

        @torch.compiler.disable
        @torch.no_grad()
        def after(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self._parts[index].undo.close()
            if len(self._seen) == len(self._parts):
                self._finish()

        return before, after

    def _clip(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        """Clip what one optimizer is about to use."""
        if index in self._seen:  # Some did not step in the last backward, which is over.
            self._finish()
        part = self._parts[index]
        part.undo.close()
        there = [p.grad is not None for p in part.params]
        tensors = [empty_like_units(p) if p.grad is None else p.grad for p in part.params]
        grads = Gradients(tensors, [self.names[m] for m in part.members], part.params, there)
        with np.errstate(all="ignore"):
            result = self._alone(part, grads) if self.exact else self._ahead(part, grads)
        self._seen[index] = result
        if self.nonfinite == "raise" and bool(result.skipped):
            bad = ", ".join(result.nonfinite) or "an earlier parameter of this backward"
            raise NonFiniteError(f"the gradient of {bad} holds inf or NaN: this step is left out")
        if self.nonfinite == "skip":
            keep_from_weights(part.undo, optimizer, part.params, result.skipped, host=grads.host)

    def _alone(self, part: _Part, grads: Gradients) -> ClipResult:
        """Run a policy that looks at nothing but these gradients."""
        fresh = init(part.plan, grads)
        memory = fresh if part.memory is None else alike(part.memory, fresh)
        asked = "propagate" if self.nonfinite == "propagate" else "skip"
        part.memory, factors, result = run(
            part.plan, memory, grads, nonfinite=asked, weights=grads.weights
        )
        grads.scale(factors)
        return as_tensors(result, grads.ran) if grads.host else replace(result, ran=grads.ran)

    def _ahead(self, part: _Part, grads: Gradients) -> ClipResult:
        """Scale before all gradients are known: by the last factors, and within the limit."""
        order = self._order
        norms = torch.as_tensor(grads.norms(range(len(part.members)), order))
        if self._factors is None:
            self._factors, self._limit = self._first_factors(norms.device)
        own = combine(norms, order, torch_xp)
        totals = [seen.total_norm.to(own.device) for seen in self._seen.values()]
        so_far = combine(torch.stack([own, *totals]), order, torch_xp)
        limit = self._limit.to(own.device)
        over = so_far > limit  # Not if there is no one limit, which is NaN then.
        cap = torch.where(over, limit / torch.where(over, so_far, 1.0), 1.0)
        factors = self._factors[list(part.members)].to(own.device).minimum(cap)
        skipped = ~torch.isfinite(so_far) & (self.nonfinite != "propagate")
        factors = torch.where(skipped, 1.0, factors)
        grads.scale(factors.numpy() if grads.host else factors)
        return _scaled(norms, factors, order, skipped, grads)

    def _first_factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ask the policy for its limit while no gradient is known."""
        nothing = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        known = KnownNorms(nothing, self._order, self.names, self._sizes, [False] * len(nothing))
        _, _, result = run(self._plan, init(self._plan, known), known, nonfinite="propagate")
        return torch.ones_like(nothing), result.limit

    def _finish(self) -> None:
        """Say what this backward did, and find the factors of the next one."""
        if not self._seen:
            return
        results = list(self._seen.values())
        self.last = _joined(results, self._order, self._limit)
        if not self.exact:
            self._look_back(results[0].total_norm.device)
        self._seen.clear()
        self.steps += 1
        self._clipped = self._clipped + self.last.clipped
        self._skipped = self._skipped + self.last.skipped
        self._in_a_row = (self._in_a_row + 1) * self.last.skipped
        due = self.last.skipped.device.type == "cpu" or self.steps % (self.max_skips + 1) == 0
        if due and int(self._in_a_row) > self.max_skips:
            text = f"{int(self._in_a_row)} backwards in a row skipped (max_skips={self.max_skips})"
            raise NonFiniteError(f"{text}: {', '.join(self.last.nonfinite[:8])} holds inf or NaN")

    def _look_back(self, device: torch.device) -> None:
        """Run the policy on the norms of this backward, which are all known now."""
        norms = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        present = [False] * len(self.names)
        for index, result in self._seen.items():
            for place, member in enumerate(self._parts[index].members):
                norms[member] = result.norms[place]
                present[member] = True
        known = KnownNorms(norms, self._order, self.names, self._sizes.to(device), present)
        fresh = init(self._plan, known)
        memory = fresh if self._memory is None else alike(self._memory, fresh)
        asked = "propagate" if self.nonfinite == "propagate" else "skip"
        self._memory, factors, result = run(self._plan, memory, known, nonfinite=asked)
        self._factors, self._limit = factors.expand(len(self.names)), result.limit


def _refuse_twice(named: Sequence[tuple[str, Tensor]]) -> None:
    """Refuse what no order of steps could make right."""
    if not named:
        raise PolicyError.of("optimizers", [], "give the optimizers that step inside of backward")
    owners: set[int] = set()
    for name, param in named:
        if id(param) in owners:
            remedy = "it belongs to two of these optimizers: give each parameter one"
            raise PolicyError.of("optimizers", name, remedy)
        owners.add(id(param))


def _alone(stage: AnyStage) -> bool:
    """Whether a stage looks at each tensor by itself."""
    if isinstance(stage, WrappedStage):
        return all(_alone(inner) for layer in stage.inner for inner in layer)
    return stage.policy.measure.scope in _EACH


def _order(whole: Plan, policy: AnyPolicy) -> float:
    """Return the one order of norm that the plan looks at, or refuse the plan."""
    stages = [stage for layer in whole for stage in layer]
    orders = {s.policy.measure.power for s in stages if isinstance(s, Stage)}
    fits = all(
        isinstance(s, Stage)
        and s.policy.measure.scope in ("tensor", "global")
        and s.policy.measure.relative is None
        and not isinstance(s.policy.response, Skip | ValueResponse)
        for s in stages
    )
    if fits and len(orders) == 1:
        return orders.pop()
    remedy = (
        "before all gradients are there only norms of one order can stand for them: use norms "
        "alone, or a policy that looks at each tensor by itself, or step after backward"
    )
    raise PolicyError.of("policy", policy, remedy)


def _parts(named: Sequence[Sequence[tuple[str, Tensor]]], whole: Plan) -> list[_Part]:
    """Return the parameters of each optimizer, with its part of the plan."""
    parts, start = [], 0
    for pairs in named:
        members = range(start, start + len(pairs))
        own = tuple(tuple(_part_of(stage, members) for stage in layer) for layer in whole)
        parts.append(_Part(members, tuple(p for _, p in pairs), own))
        start += len(pairs)
    return parts


def _part_of(stage: AnyStage, members: range) -> AnyStage:
    """Return a stage for some of the parameters, counted from the first of them."""
    mine = tuple(m - members[0] for m in stage.members if m in members)
    if isinstance(stage, Stage):
        return Stage(stage.policy, mine)
    inner = tuple(tuple(_part_of(s, members) for s in layer) for layer in stage.inner)
    return WrappedStage(stage.source, mine, inner)


def _scaled(
    norms: Tensor, factors: Tensor, order: float, skipped: Tensor, grads: Gradients
) -> ClipResult:
    """Say what factors did to gradients of these norms."""
    ledger = Ledger.start(norms, order, torch_xp)
    ledger = ledger.scaled(range(len(norms)), factors, together=False, xp=torch_xp)
    total, after, removed, cosine = ledger.summary(torch_xp)
    return ClipResult(
        total_norm=total,
        clipped_norm=after,
        coef=_ratio(after, total),
        clipped=ledger.changed,
        skipped=skipped,
        removed=removed,
        cosine=cosine,
        limit=torch.full_like(total, torch.nan),
        norms=norms,
        names=grads.names,
        ran=grads.ran,
    )


def _joined(results: Sequence[ClipResult], order: float, limit: Tensor | None) -> ClipResult:
    """Return one result for the gradients of all of them."""
    device = results[0].total_norm.device

    def every(name: str) -> Tensor:
        return torch.stack([getattr(result, name).to(device) for result in results])

    totals, afters, cosines = every("total_norm"), every("clipped_norm"), every("cosine")
    total, after = combine(totals, order, torch_xp), combine(afters, order, torch_xp)
    shares = totals / torch.where(total > 0, total, 1.0)
    kept = torch.all(cosines == 1) & torch.all(every("coef") == results[0].coef.to(device))
    both = torch.sum(shares * afters / torch.where(after > 0, after, 1.0) * cosines)
    return ClipResult(
        total_norm=total,
        clipped_norm=after,
        coef=_ratio(after, total),
        clipped=torch.any(every("clipped")),
        skipped=torch.any(every("skipped")),
        removed=combine(every("removed") * shares, 2.0, torch_xp),
        cosine=torch.where(kept | (total == 0) | (after == 0), 1.0, both),
        limit=torch.full_like(total, torch.nan) if limit is None else limit,
        norms=torch.cat([result.norms.to(device) for result in results]),
        names=tuple(name for result in results for name in result.names),
        ran="+".join(sorted({result.ran for result in results})),
    )


def _ratio(after: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, after / torch.where(total > 0, total, 1.0), 1.0)
