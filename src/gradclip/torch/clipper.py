"""`Clipper`: a policy, the parameters that it is for, and what it remembers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._publish import publish
from ..arrays import Memory, Scalar
from ..checks import choice, integer
from ..engine.one_carry import OneCarry, one_carry
from ..engine.one_clamp import OneClamp, one_clamp
from ..engine.one_norm import OneNorm, one_norm
from ..engine.result import ClipResult, numbers, said_to_run
from ..engine.run import NonFinite, run
from ..errors import NonFiniteError
from ..method.plan import Plan, plan
from ..method.policy import AnyPolicy, Chain
from ..method.read import PolicyLike, as_policy
from ..show.words import counted
from .processes.agree import Value
from .processes.bounds import refuse_divided_bounds
from .processes.layout import GroupsLike
from .processes.making import Making, listed, value_of
from .processes.placements import local
from .processes.verify import checksums, compare
from .step import at_once
from .step.attachment import Attachment
from .step.checkpoint import describe_state, refuse_other_state
from .step.decision import Decision, Done, completed, unscaled
from .step.mistakes import Mistakes
from .step.parameters import Grads, Parameters, Params, named_once
from .step.ready import left_to_the_engine, lost_to_a_scaler, make_ready
from .step.recall import (
    begin,
    follows_shapes,
    memory_for_others,
    memory_to_save,
    saved_memory,
    state_alike,
)
from .step.skip import can_look_ahead, may_skip, refuse_local_skips
from .tally import COUNTERS, Tally, blame
from .tensors.gradients import Gradients
from .tensors.memory import alike, holds_anything

__all__ = ["Clipper"]

_NONFINITE = ("skip", "zero", "raise", "propagate")
_SETTABLE = ("policy", "nonfinite", "max_skips", "observers", "attachment", "host")
_ON_THE_CPU = True, torch.device("cpu")
_UNTOUCHED = "the gradients and the weights are untouched"


class Clipper:
    """Clips the gradients of a set of parameters by a policy, and remembers.

    Args:
        params: parameters, or pairs of name and parameter such as `model.named_parameters()`.
            A parameter listed twice counts once. Their gradients are mutated by `clip_`.
        policy: a policy, its text form, or rules by name; by default `auto`, which finds its
            limit by itself. None measures and changes nothing.
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

    Source: the engine; each policy names its own.
    """

    def __init__(
        self,
        params: Params,
        policy: PolicyLike | None = "auto",
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        groups: GroupsLike | None = None,
        verify: Literal["first-step"] | None = None,
    ) -> None:
        self._last: ClipResult | None = None
        self._is_copy = False
        # Called with each result, in order; of a fused step, before the factor is applied.
        self.observers: list[Callable[[ClipResult], None]] = []
        # The hooks on an optimizer; None for a clipper that is called by hand.
        self.attachment: Attachment | None = None
        # Whether the last step was decided on the host, not on an accelerator.
        self.host: bool = True
        self._mistakes = Mistakes()
        self._memory: Memory = None
        self._place: tuple[bool, torch.device] | None = None
        self._loaded = ""
        given: list[object] = [params] if isinstance(params, Tensor) else list(params)
        making = Making(given, groups, verify=verify is not None)
        with making.arguments():
            if verify is not None:
                choice("verify", verify, ("first-step",))
            choice("nonfinite", nonfinite, _NONFINITE)
            self._policy: AnyPolicy = Chain() if policy is None else as_policy(policy)
            self._nonfinite: NonFinite = nonfinite
            self._tally = Tally(integer("max_skips", max_skips, low=0))
            self._verify = verify is not None
            named = named_once(given)
            if groups is None:
                plan(self._policy, named[0])
        said = {**self._said(), "verify": value_of(verify)}
        self._note = making.agree(named, said)
        with making.names():
            self._bind(Parameters(zip(*named, strict=True), groups))

    def __repr__(self) -> str:
        """Return what one would type."""
        copied = "; a copy, not attached" if self._is_copy else ""
        return f"Clipper(<{counted(len(self.params), 'parameter')}>, {self.policy!r}{copied})"

    def _repr_html_(self) -> str:
        """Return the policy, the counts and the last step, for a notebook; reads the device."""
        from ..show.card import card, fields
        from ..show.words import percent

        pairs = [
            ("policy", f"`{self.policy}`"),
            ("parameters", f"{len(self.params):,}"),
            ("steps", f"{self.steps:,}"),
            ("clipped", f"{self.clipped:,} ({percent(float(self.rate))})"),
            ("skipped", f"{self.skipped:,}"),
        ]
        last = "" if self._last is None else self._last._repr_html_()
        return card("Clipper", fields(pairs), last)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set what would be ignored."""
        if not name.startswith("_") and name not in _SETTABLE:
            remedy = f"set one of {', '.join(_SETTABLE[:3])}, or make a new Clipper"
            raise AttributeError(f"{name!r} of a Clipper cannot be set: {remedy}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: it is attached to no optimizer, and nobody observes it."""
        is_copy = self._is_copy or self.attachment is not None
        own = {"attachment": None, "observers": [], "_last": None, "_note": None}
        made = {"_mistakes": Mistakes(), "_tally": copy.deepcopy(self._tally)}
        return {**self.__dict__, **own, **made, "_is_copy": is_copy}

    @property
    def policy(self) -> AnyPolicy:
        """What is applied.

        Another policy can be set, as a policy, its text form or rules by name; None measures only.
        What is remembered stays where the new policy remembers the same of the same parameters.
        """
        return self._policy

    @policy.setter
    def policy(self, value: PolicyLike | None) -> None:
        policy = Chain() if value is None else as_policy(value)
        if self.attachment is not None:
            self.attachment.refuse_policy(policy)
        if policy != self._policy:
            self._bind(self._parameters, policy)
            self._note_change()

    @property
    def nonfinite(self) -> NonFinite:
        """What a gradient with inf or NaN does; can be set."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: NonFinite) -> None:
        choice("nonfinite", value, _NONFINITE)
        self._nonfinite = value
        self._note_change()

    @property
    def groups(self) -> GroupsLike | None:
        """Over which processes parameters are spread that are no DTensors."""
        return self._parameters.groups

    @property
    def plan(self) -> Plan:
        """The policy's stages, over these parameters."""
        return self._plan

    @property
    def last(self) -> ClipResult | None:
        """The result of the last step."""
        if self._last is None and self._is_copy:
            self._mistakes.unused_copy()
        return self._last

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return self._parameters.names

    @property
    def params(self) -> tuple[Tensor, ...]:
        """The parameters; one that only other processes have is on the device "meta"."""
        return self._parameters.tensors

    @property
    def max_skips(self) -> int:
        """How many steps in a row may be skipped; can be set."""
        return self._tally.max_skips

    @max_skips.setter
    def max_skips(self, value: int) -> None:
        self._tally.allow(integer("max_skips", value, low=0))
        self._note_change()

    @property
    def steps(self) -> int:
        """How many steps there were."""
        return self._tally.steps

    @property
    def rate(self) -> Scalar:
        """The share of the steps that the policy changed, 0 before the first.

        Stays on the device: a tensor on an accelerator.
        """
        return self._tally.rate

    @property
    def clipped(self) -> int:
        """How many steps the policy changed; reads the device."""
        return self._tally.clipped

    @property
    def skipped(self) -> int:
        """How many steps were skipped; reads the device."""
        return self._tally.skipped

    @property
    def scaled_because(self) -> str | None:
        """Why the gradients are multiplied by the clipper, in a pass of its own.

        None where `attach` hands the factor to a fused optimizer instead.
        """
        if self.attachment is None:
            return "the clipper is not attached to an optimizer"
        return self.attachment.scaled_because

    @property
    def may_skip(self) -> bool:
        """Whether some step may have to be kept from the weights."""
        return self.nonfinite in ("skip", "raise") or may_skip(self.plan)

    @property
    def measures_only(self) -> bool:
        """Whether gradients stay as they are, scaled ones too: no policy, and nothing to zero."""
        return len(self.plan) == 0 and self.nonfinite != "zero"

    def rebind(self, params: Params) -> None:
        """Take other parameters from now on.

        One memory for the whole model, or for a group of names, stays as it is. What is remembered
        of a parameter stays with the same tensor, or, if that is gone, with its name; what is new
        begins anew.

        Raises:
            PolicyError: a name matches no rule.
        """
        self._parameters.refuse_without_groups()
        if self._parameters.turns is not None:
            self._parameters.turns.tell()
        self._bind(Parameters(params, self.groups))

    def _note_change(self) -> None:
        """Have the other processes asked at the next step if they were changed as well."""
        if self._parameters.turns is not None:
            self._parameters.turns.is_changed = True

    def _said(self) -> dict[str, Value]:
        """Return what the clippers of all processes must have alike."""
        return {
            "policy": value_of(self._policy),
            "nonfinite": value_of(self._nonfinite),
            "max_skips": value_of(self.max_skips),
        }

    def _begin(self, kind: str, on: str = "gradient") -> None:
        """Compare the processes before a pass over the gradients, where that is due.

        Raises:
            PolicyError: in all processes, if they are not alike.
        """
        if self._note is not None:
            self._note.refuse_if_missed()
            self._note = None
        params = self._parameters
        if params.turns is not None:
            params.turns.begin(
                kind,
                lambda: {
                    **self._said(),
                    "on": value_of(on),
                    "state": value_of(self._loaded),
                    "parameters": listed(params.names, params.tensors),
                },
            )

    def _bind(self, found: Parameters, policy: AnyPolicy | None = None) -> None:
        """Take parameters, and perhaps another policy, with all that is known of them."""
        policy = self._policy if policy is None else policy
        layers = plan(policy, found.names)
        if found.layout is not None:
            refuse_local_skips(layers)
            refuse_divided_bounds(layers, found.layout)
        memory = None
        if holds_anything(self._memory):
            memory = memory_for_others(
                self._memory, (self._plan, self._parameters), (layers, found)
            )
        self._policy, self._plan, self._parameters = policy, layers, found
        self._memory, self._place = memory, None
        self._follows_shapes = found.layout is None and follows_shapes(layers)
        whole, count = found.layout is None, len(found.names)
        self._rule = _shortened(layers, count) if whole else None

    def clip_(self, *, loss: Tensor | float | None = None) -> ClipResult:
        """Clip the gradients in place, and return what was done.

        Args:
            loss: the loss of this step, one element, for a policy that looks at it.

        Returns:
            The result; its numbers stay on the device of the gradients.

        Raises:
            NonFiniteError: a gradient is not finite and the policy says to raise, or more than
                max_skips steps in a row were skipped; the gradients are untouched. On an
                accelerator the row is looked at once in max_skips + 1 steps.
            LayoutError: with verify, the processes do not mean the same model.
        """
        done = self.at_once()
        if done is None:
            with torch.no_grad():
                done = self.decide(self.gradients(), loss=loss)
                done.apply()
        return self.finish(done)

    def at_once(self, *, apply: bool = True) -> Done | None:
        """Take a step without what only other steps need: `gradients`, `decide` and applying.

        Args:
            apply: whether the gradients are clipped in place; without it a fused optimizer is to
                multiply them.

        Returns:
            For `finish`; None, with nothing changed, if this step needs more.
        """
        if torch.compiler.is_compiling() or self._verify or self._note is not None:
            return None
        rule, memory = self._rule, self._memory
        if rule is None or memory is None or self._place != _ON_THE_CPU:
            return None
        if isinstance(rule, OneClamp):
            return at_once.clip_values(rule, self._parameters, memory) if apply else None
        if isinstance(rule, OneCarry):
            carried = at_once.clip_carried
            return carried(rule, self._parameters, memory, self.steps) if apply else None
        take = at_once.clip if apply else at_once.decide
        return take(rule, self._parameters, memory, self.steps)

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
        with torch.no_grad():
            updates, grads = self._parameters.updates(before)
            decision = self.decide(grads, on="update")
            decision.apply()
            result = decision.result
            if not grads.host or bool(result.clipped) or bool(result.skipped):
                for param, old, update in zip(self.params, before, updates, strict=True):
                    here, was = local(param), local(old)
                    taken = torch.where(result.clipped, was + local(update), here)
                    here.copy_(torch.where(result.skipped, was, taken))
        return self.finish(decision)

    def gradients(self) -> Grads:
        """Return the gradients that there are now: the first part of `clip_`."""
        if self._follows_shapes and self._memory is not None and self._parameters.changed_form():
            self.rebind(list(zip(self.names, self.params, strict=True)))
        found = self._parameters.gradients()
        if self.attachment is None and isinstance(found, Gradients) and found.is_empty:
            self._mistakes.no_gradient()
        return found

    def decide(
        self,
        grads: Grads,
        *,
        loss: Tensor | float | None = None,
        scale: Tensor | None = None,
        overflow: Tensor | None = None,
        divide: bool = True,
        on: str = "gradient",
    ) -> Decision:
        """Find the factors of a step: the second part of `clip_`.

        Args:
            grads: from `gradients`. On an accelerator policies that look at values change them
                here; else only `Decision.apply` does.
            loss: see `clip_`.
            scale: what the gradients are multiplied by, as a loss scaler does. Without a policy,
                only their norms are divided by it.
            overflow: one element, not 0 where a loss scaler found inf or NaN and skips this
                step by itself: that counts as no skip, and raises nothing. On the host the
                gradients then stay as they are, scaled.
            divide: whether to divide the gradients by the scale, in place; without it they stay
                scaled (`Decision.scale`), and only norms are divided.
            on: "update" for what an optimizer did, which is clipped as gradients are.

        Raises:
            LayoutError: with verify, the processes do not mean the same model.
            PolicyError: the clippers of other processes were changed, or loaded, and this one
                was not, or the reverse; in all of them.
        """
        self._begin("decide", on)
        verify = self._verify and torch.distributed.is_initialized()
        if self._verify:
            self._verify = False
        table = checksums(self.names, self.params, self._parameters.layout) if verify else {}
        value = loss.detach() if isinstance(loss, Tensor) else loss
        measures_only, lost = self.measures_only, lost_to_a_scaler(overflow, grads)
        unwanted = None if measures_only else scale
        make_ready(grads, self.plan, self.nonfinite, unwanted, lost, divide=divide)
        with np.errstate(all="ignore") if grads.host else nullcontext():
            memory, factors, result = run(
                self.plan,
                self._recall(grads),
                grads,
                nonfinite=left_to_the_engine(self.nonfinite, lost),
                step=self._tally.now,
                loss=lambda: grads.mean_loss(value),
                weights=grads.weights,
            )
            if scale is not None and measures_only:
                result = unscaled(result, float(scale) if grads.host else scale)
        result = completed(result, grads)
        if verify:
            compare(self.names, table, result)
        return Decision(
            grads=grads,
            factors=None if measures_only else factors,
            scale=None if divide else scale,
            result=result,
            memory=memory,
            lost=lost,
        )

    @torch.no_grad()
    def look(
        self, grads: Grads, *, scale: Tensor | None = None, overflow: Tensor | None = None
    ) -> Decision:
        """Find out whether a step will be skipped, and change nothing: `decide`, ahead of time.

        Of a policy that changes values on the way only the norm of the gradients is looked at.

        Args:
            grads: from `gradients`; not to be used again.
            scale: see `decide`.
            overflow: see `decide`.

        Returns:
            A decision, to be finished if the step is skipped, and else forgotten.
        """
        self._begin("look")
        lost, ahead = lost_to_a_scaler(overflow, grads), can_look_ahead(self.plan)
        if scale is not None and lost is not True:
            grads.measure_divided_by(scale)
        with np.errstate(all="ignore") if grads.host else nullcontext():
            remembered = self._recall(grads)
            memory, factors, result = run(
                self.plan if ahead else (),
                remembered if ahead else [],
                grads,
                nonfinite=left_to_the_engine(self.nonfinite, lost),
                step=self._tally.now,
                loss=lambda: grads.mean_loss(None),
                weights=grads.weights,
            )
        kept = memory if ahead else remembered
        return Decision(grads, factors, None, completed(result, grads), kept, lost)

    def skip_whole(self) -> None:
        """Count a step of several evaluations that is left out after all of them.

        Raises:
            NonFiniteError: more than max_skips steps in a row were skipped.
        """
        assert self._last is not None
        self._last = replace(self._last, skipped=torch.ones_like(self._last.skipped))
        self._tally.count_skip()
        self._tally.refuse_too_many(self._last, _UNTOUCHED)

    def finish(self, decision: Decision | Done, *, folded: bool = False) -> ClipResult:
        """Remember, count and tell a step whose factors are applied: the last part of `clip_`.

        Args:
            decision: from `decide` or `at_once`.
            folded: whether a fused optimizer will apply the factor.

        Returns:
            The result of the step.

        Raises:
            NonFiniteError: see `clip_`.
        """
        result, lost = decision.result, decision.lost
        if folded:
            result = said_to_run(result, f"{result.ran}+fold")
        kept = self.host, self._memory, self._last, vars(self._tally).copy()
        try:
            self.host = decision.host
            self._memory, self._last = decision.memory, result
            self._tally.count(result, host=self.host, lost=lost)
        except BaseException:  # An interrupt: no memory moves without its counters.
            self.host, self._memory, self._last, tally = kept
            vars(self._tally).update(tally)
            raise
        if self.observers:
            with torch.no_grad():
                for observe in self.observers:
                    observe(result)
        if self.nonfinite == "raise" and bool(numbers(result).skipped > lost) and result.nonfinite:
            raise NonFiniteError(f"{blame(result)}; {_UNTOUCHED}")
        self._tally.refuse_too_many(result, _UNTOUCHED)
        if self.attachment is None and self._tally.skips_in_a_row():
            self._mistakes.skip_for_the_caller(result)
        return result

    def set_attachment(self, attachment: Attachment) -> None:
        """Note what puts this clipper into an optimizer's steps, until `detach`."""
        self.attachment = attachment

    def detach(self) -> None:
        """Take the hooks of `attach` off the optimizer; the clipper itself stays usable."""
        if self.attachment is not None:
            self.attachment.remove()
        self.attachment = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that the clipper remembers, as plain tensors and primitives."""
        return {
            **describe_state(self.policy, self.names),
            **self._tally.state_dict(),
            "memory": memory_to_save(self._memory, self._plan, self._parameters),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with all of it or, after an error, with nothing.

        Args:
            state: not mutated.

        Raises:
            PolicyError: it was made by another schema, another policy or other parameters, or an
                entry is none that this policy could have left; names the entry.
        """
        refuse_other_state(state, self.policy, self.names, (*COUNTERS, "memory"))
        memory = saved_memory(state["memory"], self._plan, self._parameters)
        self._tally.load_state_dict(state)
        self._memory, self._place = memory, None
        if self._parameters.turns is not None:
            self._loaded = state_alike(state, self._plan)
            self._note_change()

    def _recall(self, grads: Grads) -> Memory:
        """Return the memory in the libraries in which this step decides."""
        place = (grads.host, grads.device)
        if self._memory is None or self._place != place:
            fresh = begin(self._plan, grads)
            self._memory = fresh if self._memory is None else alike(self._memory, fresh)
            self._place = place
        return self._memory


def _shortened(layers: Plan, count: int) -> OneNorm | OneClamp | OneCarry | None:
    """Return what a plan comes down to, if a step of it needs one or two calls of the kernel."""
    return one_norm(layers, count) or one_clamp(layers, count) or one_carry(layers, count)


publish("gradclip.torch", ("Clipper",), globals())
