"""`Clipper`: a policy, the parameters that it is for, and what it remembers."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checks import choice, integer
from ..engine.result import ClipResult
from ..engine.run import NonFinite, init, run
from ..errors import GradclipWarning, NonFiniteError, PolicyError
from ..method.plan import Plan, Stage, plan
from ..method.policy import AnyPolicy, Chain
from ..method.read import PolicyLike, as_policy, is_written
from ..method.response import Skip
from .processes.exchange import layout
from .processes.layout import GroupsLike, Layout
from .processes.placements import as_parts, local
from .processes.sharded import Sharded
from .processes.verify import checksums, compare
from .step.fused import Fold
from .tensors.gradients import Gradients
from .tensors.memory import alike, holds_anything, map_arrays

__all__ = ["Clipper", "as_tensors", "empty_like_units"]

_SCHEMA = 1
_ALONE = "the clipper is not attached to an optimizer"
Params = Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


class Clipper:
    """Clips the gradients of a set of parameters by a policy, and remembers.

    Args:
        params: parameters, or pairs of name and parameter such as `model.named_parameters()`.
            A parameter listed twice counts once. Their gradients are mutated by `clip_`.
        policy: a policy, its text form, or rules by name; None measures and changes nothing.
        nonfinite: what a gradient with inf or NaN does. "skip": nothing is changed, the result
            says `skipped`, and the optimizer must not step (`attach` sees to that); "zero":
            such values become 0 and the rest is clipped; "raise": an error that names the
            parameters; "propagate": computed on, as torch does.
        max_skips: more skips in a row than this raise an error that names the parameters.
        groups: over which processes parameters are spread that are no DTensors, or of which the
            others are elsewhere, as in a pipeline: a ProcessGroup or one dimension of a
            DeviceMesh, or such by patterns over names, as in {"experts.*": expert_group}. The
            clipper then knows the parameters of all these processes, and all of them make it
            at the same time.
        verify: "first-step" has all processes of the job compare, at the first step, what each
            has and counts, and raise an error that names the parameters that are counted
            several times, or not at all.

    Raises:
        PolicyError: an argument is wrong, or a name matches no rule.

    Numerics: norms accumulate in float64, or scaled in float32 where the device has no
    float64. Under the limit no bit changes. A non-finite norm enters no memory.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> clipper = Clipper(model.named_parameters(), "norm:1.0")
        >>> model(torch.ones(8, 2)).pow(2).sum().mul(100).backward()
        >>> result = clipper.clip_()
        >>> bool(result.clipped), round(float(result.clipped_norm), 6)
        (True, 1.0)

    Attributes:
        last: the result of the last step.
        steps: how many times `clip_` ran.
        observers: called with each result, in order; of a fused step, before the optimizer has
            applied the factor.
        handles: what `detach` removes: the hooks that `attach` put on an optimizer, which keep
            a skipped step from the weights.
        plan: the policy's stages, over these parameters.
        host: whether the last step was decided on the host, not on an accelerator.
        in_place: why the gradients are multiplied by the clipper itself, in a pass of its own; None
            where `attach` hands the factor to a fused optimizer instead.

    Source: the engine; each policy names its own.
    """

    def __init__(
        self,
        params: Params,
        policy: PolicyLike | None,
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        groups: GroupsLike | None = None,
        verify: Literal["first-step"] | None = None,
    ) -> None:
        if verify is not None:
            choice("verify", verify, ("first-step",))
        choice("nonfinite", nonfinite, ("skip", "zero", "raise", "propagate"))
        self.policy: AnyPolicy = Chain() if policy is None else as_policy(policy)
        self.nonfinite: NonFinite = nonfinite
        self.max_skips = integer("max_skips", max_skips, low=0)
        self.last: ClipResult | None = None
        self.observers: list[Callable[[ClipResult], None]] = []
        self.handles: list[Any] = []
        self.host = True
        self.groups = groups
        self._verify = verify is not None
        self.in_place: str | None = _ALONE
        self._warned = False
        self.steps = 0
        self._memory: Any = None
        self._place: Any = None
        self._clipped: Any = 0
        self._skipped: Any = 0
        self._in_a_row: Any = 0
        self._recent: deque[Tensor] = deque(maxlen=self.max_skips + 1)
        self.rebind(params)

    def __repr__(self) -> str:
        """Return what one would type."""
        return f"Clipper(<{len(self.params)} parameters>, {self.policy!r})"

    @property
    def may_skip(self) -> bool:
        """Whether some step may have to be kept from the weights."""
        return self.nonfinite in ("skip", "raise") or _skips(self.plan)

    @property
    def measures_only(self) -> bool:
        """Whether gradients stay as they are, scaled ones too: no policy, and nothing to zero."""
        return not self.plan and self.nonfinite != "zero"

    @property
    def clipped(self) -> int:
        """How many steps the policy changed; reads the device."""
        return int(self._clipped)

    @property
    def skipped(self) -> int:
        """How many steps were skipped; reads the device."""
        return int(self._skipped)

    def rebind(self, params: Params) -> None:
        """Take other parameters from now on, as long as nothing is remembered of the old ones.

        Raises:
            PolicyError: the policy has a memory, or a name matches no rule.
        """
        names, found = _named(params)
        spread = layout(names, found, self.groups)
        if spread is not None:
            names, found = _of_the_model(spread, found)
        if holds_anything(self._memory):
            changed = sorted(set(names) ^ set(self.names)) or ["the order of the names"]
            remedy = "the policy remembers the parameters it began with: make a new Clipper"
            raise PolicyError.of("params", changed, remedy)
        self.plan, self._memory = plan(self.policy, names), None
        if spread is not None:
            _refuse_local_skips(self.plan)
        self._empty_grads = [] if spread else [empty_like_units(param) for param in found]
        self.names, self.params, self._layout = names, found, spread

    @torch.no_grad()
    def clip_(
        self,
        *,
        loss: Tensor | float | None = None,
        scaled_by: Tensor | None = None,
        overflow: Tensor | None = None,
        fold: Fold | None = None,
    ) -> ClipResult:
        """Clip the gradients in place, and return what was done.

        Args:
            loss: the loss of this step, one element, for a policy that looks at it.
            scaled_by: what the gradients are multiplied by, as a loss scaler does; they are
                divided by it first, or, without a policy, only their norms.
            overflow: one element, not 0 where a loss scaler found inf or NaN and skips this
                step by itself: that counts as no skip, and raises nothing. On the host the
                gradients then stay as they are, scaled.
            fold: takes the factor to a fused optimizer, if it can: the gradients then stay as
                they are, scaled too, and `fold.taken` is set.

        Returns:
            The result; its numbers stay on the device of the gradients.

        Raises:
            NonFiniteError: a gradient is not finite and the policy says to raise, or more than
                max_skips steps in a row were skipped; the gradients are untouched. On an
                accelerator the row is looked at once in max_skips + 1 steps.
            LayoutError: with verify, the processes do not mean the same model.
        """
        grads = self._gradients()
        self.host = grads.host
        if fold is not None and not fold.fits(grads):
            fold = None
        verify, self._verify = self._verify and torch.distributed.is_initialized(), False
        table = checksums(self.names, self.params, self._layout) if verify else {}
        result = self._step(grads, self._lost(overflow, grads), scaled_by, fold, _number(loss))
        if verify:
            compare(self.names, table, result)
        return result

    def _gradients(self) -> Gradients | Sharded:
        """Return the gradients that there are now."""
        found = [p.grad for p in self.params]
        if self._layout is not None:
            return Sharded(found, self.params, self._layout)
        present = [grad is not None for grad in found]
        if not any(present):
            self._tell_empty()
        pairs = zip(found, self._empty_grads, strict=True)
        tensors = [empty if grad is None else grad for grad, empty in pairs]
        return Gradients(tensors, self.names, self.params, present)

    def _tell_empty(self) -> None:
        """Say once that there was nothing to clip, where that is likely to be a mistake."""
        if self.handles or self._warned:
            return
        self._warned = True
        text = (
            "no parameter has a gradient: nothing was clipped. Call clip_() between backward and "
            "zero_grad(); for optimizers that step inside of backward there is "
            "gradclip.torch.attach_in_backward"
        )
        warnings.warn(text, GradclipWarning, stacklevel=5)

    @torch.no_grad()
    def clip_updates_(self, before: Sequence[Tensor]) -> ClipResult:
        """Clip what an optimizer did to the parameters, in place, and return what was done.

        Args:
            before: the parameters' values before the optimizer's step, in their order; not
                mutated. A policy that looks at weights looks at these.

        Returns:
            The result, of the updates. After a skip the parameters are what they were before.

        Raises:
            NonFiniteError: see `clip_`, of an update.
        """
        updates = [p - old for p, old in zip(self.params, before, strict=True)]
        if self._layout is None:
            grads = Gradients(updates, self.names, before)
        else:
            grads = Sharded(updates, before, self._layout)
        self.host = grads.host
        result = self._step(grads, False, None, None, None)
        idle = self.host and not bool(result.clipped) and not bool(result.skipped)
        for param, old, update in zip(self.params, before, updates, strict=True):
            if not idle:
                here, was = local(param), local(old)
                taken = torch.where(result.clipped, was + local(update), here)
                here.copy_(torch.where(result.skipped, was, taken))
        return result

    def _step(
        self,
        grads: Gradients | Sharded,
        lost: Any,
        scaled_by: Tensor | None,
        fold: Fold | None,
        loss: Tensor | float | None,
    ) -> ClipResult:
        """Run the policy, and see to everything that a step brings with it."""
        asked: NonFinite = "skip"
        if lost is not True:
            asked = "propagate" if self.nonfinite in ("propagate", "zero") else "skip"
            if scaled_by is not None and not self.measures_only:
                divide = grads.unscale if fold is None else grads.measure_divided_by
                divide(scaled_by)
            if self.nonfinite == "zero":
                grads.zero_nonfinite()
        with np.errstate(all="ignore"):
            memory = self._recall(grads)
            memory, factors, result = run(
                self.plan,
                memory,
                grads,
                nonfinite=asked,
                loss=lambda: grads.mean_loss(loss),
                weights=grads.weights,
            )
            ran = grads.ran
            if fold is not None and fold.take(factors):
                ran = f"{ran}+fold"
            elif not self.measures_only:
                grads.scale(factors if fold is None else fold.rest(factors))
            elif scaled_by is not None:
                result = _unscaled(result, float(scaled_by) if grads.host else scaled_by)
        result = as_tensors(result, ran) if grads.host else replace(result, ran=ran)
        self._memory = memory
        self.last = result
        self._count(result, lost)
        for observe in self.observers:
            observe(result)
        self._judge(result, lost)
        return result

    def _recall(self, grads: Gradients | Sharded) -> Any:
        """Return the memory in the libraries in which this step decides."""
        place = (grads.host, grads.device)
        if self._memory is None or self._place != place:
            fresh = self._empty(grads)
            self._memory = fresh if self._memory is None else alike(self._memory, fresh)
            self._place = place
        return self._memory

    def _empty(self, grads: Gradients | Sharded) -> Any:
        """Return the memory of before the first step."""
        return init(self.plan, grads.unexchanged() if isinstance(grads, Sharded) else grads)

    def _memory_to_save(self) -> Any:
        """Return the memory as tensors; of sharded parameters as a checkpoint can divide it."""
        memory = self._memory
        if self._layout is not None:
            if memory is None:  # A distributed checkpoint is read into what there is already.
                grads = [torch.zeros_like(p) if p.requires_grad else None for p in self.params]
                memory = self._empty(Sharded(grads, self.params, self._layout))
            memory = map_arrays(memory, torch.as_tensor)
            memory = as_parts(memory, self.params)
        return map_arrays(memory, lambda array: torch.as_tensor(array).clone())

    def _lost(self, overflow: Tensor | None, grads: Gradients | Sharded) -> Any:
        """Whether a loss scaler skips this step: a bool on the host, else on the device."""
        if overflow is None:
            return False
        if grads.host:
            return bool(overflow)
        return overflow.reshape(()).to(grads.device) != 0

    def _count(self, result: ClipResult, lost: Any) -> None:
        """Count the step; on a device the counters stay there."""
        self.steps += 1
        clipped, skipped = result.clipped, result.skipped
        if self.host:
            clipped, skipped = bool(clipped), bool(skipped)
        ours = skipped > lost  # Skipped, and not by the loss scaler.
        self._clipped = self._clipped + clipped
        self._skipped = self._skipped + ours
        self._in_a_row = (self._in_a_row + ours) * (skipped | lost)
        self._recent.append(result.total_norm)

    def _judge(self, result: ClipResult, lost: Any) -> None:
        """Raise or warn, if the step calls for it; on a device, look only now and then."""
        if self.nonfinite == "raise" and bool(result.skipped > lost) and result.nonfinite:
            raise NonFiniteError(f"{_blame(result)}; the gradients and the weights are untouched")
        due = not lost if self.host else self.steps % (self.max_skips + 1) == 0
        if not due or not int(self._in_a_row):
            return
        if int(self._in_a_row) > self.max_skips:
            raise NonFiniteError(
                f"{int(self._in_a_row)} steps in a row were skipped (max_skips={self.max_skips}): "
                f"{_blame(result)}; the last norms were {_numbers(self._recent)}; "
                "the gradients and the weights are untouched"
            )
        if not self.handles and not self._warned:
            self._warned = True
            text = (
                f"{_blame(result)}: the gradients are untouched. Call optimizer.step() only if "
                "not result.skipped, or let gradclip.torch.attach(optimizer, policy) see to it"
            )
            warnings.warn(text, GradclipWarning, stacklevel=5)

    def detach(self) -> None:
        """Take the hooks of `attach` off the optimizer; the clipper itself stays usable."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.in_place = _ALONE

    def state_dict(self) -> dict[str, Any]:
        """Return all that the clipper remembers, as plain tensors and primitives."""
        return {
            "schema": _SCHEMA,
            "policy": str(self.policy),
            "names": list(self.names),
            "steps": self.steps,
            "clipped": self.clipped,
            "skipped": self.skipped,
            "in_a_row": int(self._in_a_row),
            "memory": self._memory_to_save(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the state is not mutated.

        Raises:
            PolicyError: it was made by another schema, another policy or other parameters.
        """
        schema = state.get("schema")
        if schema != _SCHEMA:
            raise PolicyError.of("schema", schema, f"this version reads schema {_SCHEMA}")
        if not is_written(self.policy, state["policy"]):
            remedy = f"this clipper's policy is {str(self.policy)!r}: make it with the saved one"
            raise PolicyError.of("policy", state["policy"], remedy)
        if list(state["names"]) != list(self.names):
            changed = sorted(set(state["names"]) ^ set(self.names)) or ["the order of the names"]
            remedy = "the saved parameters are others than this clipper's: rebuild it with them"
            raise PolicyError.of("names", changed, remedy)
        self.steps = int(state["steps"])
        self._clipped, self._skipped = int(state["clipped"]), int(state["skipped"])
        self._in_a_row = int(state["in_a_row"])
        self._memory = map_arrays(state["memory"], lambda array: local(array).clone())
        self._place = None


def _named(params: Params) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return names and parameters, each parameter once."""
    given: Sequence[Any] = [params] if isinstance(params, Tensor) else list(params)
    found: dict[int, tuple[str, Tensor]] = {}
    for index, item in enumerate(given):
        name, param = (str(index), item) if isinstance(item, Tensor) else _pair(item)
        found.setdefault(id(param), (name, param))
    if not found:
        remedy = "it is empty; a generator such as model.parameters() can be read only once"
        raise PolicyError.of("params", given, remedy)
    return tuple(n for n, _ in found.values()), tuple(p for _, p in found.values())


def _pair(item: Any) -> tuple[str, Tensor]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
        return str(item[0]), item[1]
    remedy = "give model.parameters() or model.named_parameters()"
    raise PolicyError.of("params", type(item).__name__, remedy)


def _of_the_model(
    spread: Layout, params: Sequence[Tensor]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return the names of the whole model, and its parameters; others' hold no memory."""
    found = []
    for index, piece in enumerate(spread.pieces):
        if piece.own is None:
            found.append(torch.empty(piece.shape, dtype=piece.dtype, device="meta"))
        else:
            found.append(params[piece.own])
            spread.pieces[index] = replace(piece, own=index)
    return tuple(piece.name for piece in spread.pieces), tuple(found)


def _refuse_local_skips(layers: Plan) -> None:
    """Refuse a skip that looks at values one by one: each process sees others."""
    for stage in (stage for layer in layers for stage in layer if isinstance(stage, Stage)):
        scope = stage.policy.measure.scope
        if isinstance(stage.policy.response, Skip) and scope in ("element", "singular"):
            remedy = "with sharded parameters use scope='tensor', with order=inf for the largest"
            raise PolicyError.of("policy", stage.policy, remedy)


def _skips(layers: Plan) -> bool:
    """Whether any stage of a plan may skip a step."""
    stages = (stage for layer in layers for stage in layer if isinstance(stage, Stage))
    return any(isinstance(stage.policy.response, Skip) for stage in stages)


def empty_like_units(param: Tensor) -> Tensor:
    """Stands in for a missing gradient: no values, but as many units as the parameter has."""
    shape = (0,) if param.ndim < 2 else (param.shape[0], 0)
    return torch.empty(shape, dtype=param.dtype, device=param.device)


def _unscaled(result: ClipResult, scale: Any) -> ClipResult:
    """Return what would have been measured before a loss scaler multiplied the gradients."""
    names = ("total_norm", "clipped_norm", "norms")
    return replace(result, **{name: getattr(result, name) / scale for name in names})


def as_tensors(result: ClipResult, ran: str) -> ClipResult:
    """Return the host's numbers as tensors: one allocation for all of a kind."""
    floats = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
    values = torch.from_numpy(np.asarray([getattr(result, name) for name in floats]))
    flags = torch.from_numpy(np.asarray([result.clipped, result.skipped], bool))
    clipped, skipped = flags.unbind()
    return replace(
        result,
        **dict(zip(floats, values.unbind(), strict=True)),
        clipped=clipped,
        skipped=skipped,
        norms=torch.from_numpy(result.norms),
        ran=ran,
    )


def _blame(result: ClipResult) -> str:
    names = result.nonfinite
    if not names:
        return f"the policy skips a norm of {float(result.total_norm):.6g}"
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the gradient of {shown} holds inf or NaN"


def _numbers(norms: Iterable[Tensor]) -> str:
    return ", ".join(f"{float(norm):.4g}" for norm in norms)


def _number(loss: Tensor | float | None) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss
