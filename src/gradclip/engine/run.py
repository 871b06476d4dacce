"""The one pass that every backend shares: measure → threshold → response → apply → result.

A backend knows how to measure gradients and how to apply the answer (`Backend`); which norm goes
with which limit, what enters a memory and what a step did is decided here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import PolicyError
from ..method.measure import combine
from ..method.plan import Plan, Stage, WrappedStage
from ..method.policy import Policy
from ..method.response import Clamp, Skip, ValueResponse
from ..method.threshold import Limits, Seen
from .ledger import Ledger, put
from .result import ClipResult

__all__ = ["Backend", "NonFinite", "Plan", "init", "run"]

NonFinite = Literal["skip", "zero", "raise", "propagate"]
Memory = Any  # Dictionaries and lists, nested, of arrays.
Units = tuple[Any, Any, list[int]]
"""What `Backend.unit_norms` returns."""

# The squares of these, and their sums, stay far within float64.
_SMALL, _LARGE = 1e-75, 1e75


class Backend(Protocol):
    """The gradients of one step, and all that a backend can do with them.

    Members are indices into the gradients. What changes gradients does so for the holder;
    `keep`, where given, is a scalar boolean: true leaves every value as it is.
    """

    @property
    def xp(self) -> Any:
        """The array namespace of norms, factors and limits."""
        ...

    @property
    def values_xp(self) -> Any:
        """The array namespace of the gradients themselves."""
        ...

    @property
    def host(self) -> bool:
        """Whether a Python `if` may look at a norm."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each gradient."""
        ...

    @property
    def sizes(self) -> Any:
        """The number of values of each gradient, shape (gradients,), as floats."""
        ...

    @property
    def present(self) -> Sequence[bool]:
        """Which gradients there are here: known without a look at their values."""
        ...

    @property
    def somewhere(self) -> Sequence[bool]:
        """Which gradients there are in any process; what is present, if there is but one."""
        ...

    @property
    def spread(self) -> bool:
        """Whether parts of them are in other processes."""
        ...

    @property
    def path(self) -> str:
        """What does the work."""
        ...

    @property
    def loss(self) -> Any:
        """The loss of the step, or None."""
        ...

    @property
    def weights(self) -> Backend | None:
        """The weights, as something to measure; None if they are not known."""
        ...

    def array(self, values: list[float]) -> Any:
        """Return numbers where the decisions are made."""
        ...

    def norms(
        self, members: Sequence[int], order: float, relative: tuple[float, float] | None
    ) -> Any:
        """Return the p-norm of each member, shape (members,), in float64 where there is one."""
        ...

    def unit_norms(
        self, members: Sequence[int], order: float, axis: int | None
    ) -> tuple[Any, Any, list[int]]:
        """Return all members' units one after the other.

        Their p-norms and their numbers of values, both of shape (units,), and how many units
        each member has.
        """
        ...

    def unit_dots(self, a: Any, b: Any, counts: list[int], *, root: bool = False) -> Any:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,).

        Summed in float64 where there is one, so that a root is right where its square vanishes.
        """
        ...

    def scale(self, factors: Any) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        ...

    def scale_units(self, members: Sequence[int], factors: Any, axis: int | None) -> None:
        """Multiply each unit of each member by its factor, shape (units,)."""
        ...

    def clamp(self, members: Sequence[int], limits: Limits, norms: Any, keep: Any) -> Any:
        """Clamp the members between two numbers; None if there is no shortcut for it.

        Returns what `map` returns, for all members.
        """
        ...

    def refuse_complex(self, members: Sequence[int]) -> None:
        """Refuse values that have no order, before anything is changed."""
        ...

    def get(self, member: int) -> Any:
        """Return one gradient, in at least float32, for arithmetic."""
        ...

    def put(self, member: int, value: Any, keep: Any, *, like: Any = None) -> tuple[Any, Any]:
        """Replace one gradient by a value of its shape.

        Returns the 2-norm of what is stored, and its cosine to what was there, or to `like`:
        exactly 1 where they are equal.
        """
        ...

    def whole(self, members: Sequence[int], norms: Any, cosines: Any) -> tuple[Any, Any]:
        """Return what `put` returned, shape (members,), as it is of the whole gradients.

        A gradient may be spread over processes, and then `put` knows of one part.
        """
        ...

    def singular(self, member: int) -> tuple[Any, Any, Any] | None:
        """Return U, σ, Vᵀ of a matrix, filters flattened; None for a vector."""
        ...


def init(plan: Plan, grads: Backend) -> Memory:
    """Return the empty memory of a plan, for gradients of these shapes."""
    return [[_init_stage(stage, grads) for stage in layer] for layer in plan]


def run(
    plan: Plan, memory: Memory, grads: Backend, *, nonfinite: NonFinite
) -> tuple[Memory, Any, ClipResult]:
    """Clip the gradients that `grads` holds.

    Args:
        plan: the layers of stages, from `policy.plan` over all gradients' names.
        memory: from `init` or the last `run`; not mutated.
        grads: the gradients; changed, except for the factors returned.
        nonfinite: "skip" changes nothing when a norm is not finite; "propagate" computes on.
            The other decisions are the backend's, before or after this.

    Returns:
        The new memory, the factors that remain to be applied (shape () or (gradients,)), and
        the result.
    """
    xp = grads.xp
    everything = range(len(grads.names))
    order = _common_order(plan, len(everything))
    units = _first_units(plan, grads, order)
    raw = grads.norms(everything, order, None) if units is None else _of_units(units, grads)
    ledger = Ledger.start(raw, order, xp)
    finite = xp.isfinite(ledger.total)
    skipped = ~finite if nonfinite == "skip" else finite & ~finite
    work = _Pass(grads, ledger, skipped, {}, None, units)
    memory = work.layers(plan, memory)
    return memory, work.pending(), work.result()


def _common_order(plan: Plan, count: int) -> float:
    """Return the order that the whole-gradient norm is taken in."""
    orders = {
        stage.policy.measure.power
        if isinstance(stage, Stage)
        and stage.policy.measure.scope == "global"
        and len(stage.members) == count
        else 2.0
        for layer in plan
        for stage in layer
    }
    return orders.pop() if len(orders) == 1 else 2.0


def _first_units(plan: Plan, grads: Backend, order: float) -> Units | None:
    """Return the norms of all units, if the plan begins with them and all else follows from them.

    Then one read of the gradients does for both. Only on the host, which can look whether the
    squares stay within float64.
    """
    stage = plan[0][0] if plan and len(plan[0]) == 1 else None
    # Of spread ones, the norms of the tensors also tell each process which gradients others have.
    if not grads.host or grads.spread or not isinstance(stage, Stage):
        return None
    measure = stage.policy.measure
    whole = stage.members and len(stage.members) == len(grads.names)
    if not whole or measure.scope != "unit" or not measure.power == order == 2.0:
        return None
    units = grads.unit_norms(stage.members, 2.0, measure.axis)
    norms, xp = units[0], grads.xp
    plain = (norms == 0) | ((norms > _SMALL) & (norms < _LARGE))
    return units if bool(xp.all(plain)) else None


def _of_units(units: Units, grads: Backend) -> Any:
    """Return the members' 2-norms, from those of their units."""
    norms, _, counts = units
    return grads.unit_dots(norms, norms, counts, root=True)


@dataclass
class _Pass:
    """One run over the plan: what is being worked on, and what is known of it."""

    grads: Backend
    ledger: Ledger
    skipped: Any
    raws: dict[int, Any]
    limit: Any
    units: Units | None
    """The norms of all units, which the first stage is about to ask for."""
    watched: bool = False

    def layers(self, plan: Plan, memory: Memory) -> Memory:
        """Run layer after layer; return the new memory."""
        new = []
        for depth, (layer, old) in enumerate(zip(plan, memory, strict=True)):
            self.watched = depth == 0 and len(layer) == 1 and not self.raws
            done = []
            for stage, state in zip(layer, old, strict=True):
                # On the host a step to be skipped is known; a device decides by masks instead.
                idle = not stage.members or (self.grads.host and bool(self.skipped))
                done.append(state if idle else self.stage(stage, state))
            new.append(done)
        return new

    def stage(self, stage: Stage | WrappedStage, state: Memory) -> Memory:
        """Run one stage on its members; return its new memory."""
        if isinstance(stage, WrappedStage):
            return self._wrapped(stage, state)
        scope = stage.policy.measure.scope
        if scope in ("element", "singular"):
            return self._values(stage, state)
        if isinstance(stage.policy.response, ValueResponse):
            return self._spikes(stage, state)
        return self._units(stage, state) if scope == "unit" else self._norms(stage, state)

    def pending(self) -> Any:
        """Return the factors that were not applied yet."""
        one = self.grads.xp.ones_like(self.ledger.pending)
        return self._unless_skipped(self.ledger.pending, one)

    def flush(self) -> None:
        """Apply what is pending, since the next stage reads the values."""
        self.grads.scale(self.pending())
        self.ledger = replace(self.ledger, pending=self.grads.xp.ones_like(self.skipped * 1.0))

    def result(self) -> ClipResult:
        """Say what was done."""
        xp = self.grads.xp
        total, after, removed, cosine = self.ledger.summary(xp)
        one = xp.ones_like(total)
        coef = xp.where(total > 0, after / xp.where(total > 0, total, one), one)
        limit = xp.nan if self.limit is None else self.limit
        return ClipResult(
            total_norm=total,
            clipped_norm=self._unless_skipped(after, total),
            coef=self._unless_skipped(coef, one),
            clipped=self.ledger.changed & ~self.skipped,
            skipped=self.skipped,
            removed=self._unless_skipped(removed, 0 * one),
            cosine=self._unless_skipped(cosine, one),
            limit=xp.where(xp.isfinite(total), limit * one, xp.nan * one),
            norms=self.ledger.raw,
            names=self.grads.names,
            path=self.grads.path,
        )

    def _unless_skipped(self, value: Any, otherwise: Any) -> Any:
        if self.grads.host:
            return otherwise if bool(self.skipped) else value
        return self.grads.xp.where(self.skipped, otherwise, value)

    def _norms(self, stage: Stage, state: Memory) -> Memory:
        """Run a policy with one norm for each member, or one for all, or none but the loss."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        whole = measure.scope != "tensor"
        seen = Seen(weights=lambda: self._of(_weights(self.grads, stage.policy), stage))
        if measure.scope == "loss":
            norms = _loss(self.grads, xp)
        else:
            norms = self._of(self.grads, stage)
        limits, state = self._decide(stage, state, norms, seen, self._here(members, whole=whole))
        response = stage.policy.response
        assert not isinstance(response, ValueResponse)
        factors = response.factors(norms, limits, xp)
        self.ledger = self.ledger.scaled(members, factors, whole=whole, xp=xp)
        return state

    def _of(self, what: Backend, stage: Stage) -> Any:
        """Return the norms that a stage looks at, of the gradients or of the weights."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        known = what is self.grads and measure.relative is None
        if known and measure.power == self.ledger.order:
            norms = self._pick(self.ledger.now, members)
        else:
            if what is self.grads:
                self.flush()
            norms = what.norms(members, measure.power, measure.relative)
        whole = measure.scope == "global"
        if whole:
            untouched = norms is self.ledger.raw  # The first stage's: measured already.
            total = self.ledger.total if untouched else combine(norms, measure.power, xp)
            norms = xp.reshape(total, (1,))
        if not isinstance(measure.order, str):
            return norms
        sizes = self._pick(self.grads.sizes, members)
        return measure.per_size(norms, xp.reshape(xp.sum(sizes), (1,)) if whole else sizes, xp)

    def _units(self, stage: Stage, state: Memory) -> Memory:
        """Run a policy with one norm, and one factor, for each unit of each member."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        self.flush()
        norms, counts = self._unit_norms(self.grads, stage)
        seen = Seen(weights=lambda: self._unit_norms(_weights(self.grads, stage.policy), stage)[0])
        here = self._here(np.repeat(members, counts).tolist())
        limits, state = self._decide(stage, state, norms, seen, here)
        response = stage.policy.response
        assert not isinstance(response, ValueResponse)
        factors = response.factors(norms, limits, xp)
        factors = xp.where(self.skipped, xp.ones_like(factors), factors)
        if self.grads.host and bool(xp.all(factors == 1)):
            return state
        self._turn_units(stage, norms, factors, counts)
        self.grads.scale_units(members, factors, measure.axis)
        return state

    def _turn_units(self, stage: Stage, norms: Any, factors: Any, counts: list[int]) -> None:
        """Enter what factors for units do to each member's norm and direction."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        if measure.order != 2.0:
            norms, _, _ = self.grads.unit_norms(members, 2.0, measure.axis)
        known = self.ledger.order == 2.0
        before = (
            self._pick(self.ledger.now, members) if known else self.grads.norms(members, 2.0, None)
        )
        one = xp.ones_like(before)
        owners = np.repeat(np.arange(len(counts)), counts)
        # In units of the member's own norm no square overflows.
        scale = xp.where((before > 0) & xp.isfinite(before), before, one)
        where = xp.asarray(owners)
        shares = norms / xp.take(scale, where, axis=0)
        left = shares * factors
        after = self.grads.unit_dots(left, left, counts, root=True)
        length = xp.where(after > 0, after, one)
        both = self.grads.unit_dots(shares, left / xp.take(length, where, axis=0), counts)
        other = xp.where(factors == 1, xp.zeros_like(factors), xp.ones_like(factors))
        turned = self.grads.unit_dots(other, other, counts)
        usable = (turned > 0) & (before > 0) & (after > 0)
        # 1 would mean that nothing changed, whatever rounding says.
        most = one - xp.finfo(one.dtype).eps / 2
        cosine = xp.where(usable, xp.where(both < most, both, most), one)
        ledger = self.ledger.turned(members, after * scale, cosine, xp)
        # A small unit's change can be lost in the norms: ask the factors.
        self.ledger = replace(ledger, changed=self.ledger.changed | xp.any(factors != 1))

    def _unit_norms(self, what: Backend, stage: Stage) -> tuple[Any, list[int]]:
        measure = stage.policy.measure
        known = None
        if what is self.grads:
            known, self.units = self.units, None  # Of the first stage, and before its factors.
        norms, sizes, counts = known or what.unit_norms(stage.members, measure.power, measure.axis)
        return measure.per_size(norms, sizes, self.grads.xp), counts

    def _values(self, stage: Stage, state: Memory) -> Memory:
        """Run a policy that changes values one by one, or singular values."""
        xp, policy = self.grads.xp, stage.policy
        self.flush()
        norms = self._pick(self.ledger.now, stage.members)
        if not policy.threshold.init(norms, xp) and policy.measure.scope == "element":
            limits, _ = policy.threshold.update({}, norms, Seen(), xp)
            done = None
            if isinstance(policy.response, Clamp):
                done = self.grads.clamp(stage.members, limits, norms, self.skipped)
            if done is not None:
                self._note_limit(limits)
                after, cosine = done
                self.ledger = self.ledger.turned(stage.members, after, cosine, xp)
                return state
        new, after, cosine = dict(state), [], []
        for position, member in enumerate(stage.members):
            if self._absent(member):
                after.append(norms[position])
                cosine.append(xp.ones_like(norms[position]))
                continue
            norm, turned, new[str(member)] = self._one(stage, member, state.get(str(member)))
            after.append(norm)
            cosine.append(turned)
        found = self.grads.whole(stage.members, xp.stack(after), xp.stack(cosine))
        self.ledger = self.ledger.turned(stage.members, *found, xp)
        return new

    def _spikes(self, stage: Stage, state: Memory) -> Memory:
        """Run a policy with one norm for each member, which changes values one by one."""
        xp, policy, members = self.grads.xp, stage.policy, stage.members
        assert isinstance(policy.response, ValueResponse)
        self.flush()
        norms = self._of(self.grads, stage)
        limits, state = self._decide(stage, state, norms, Seen(), self._here(members))
        high = limits.high + xp.zeros_like(norms)
        after, cosine = [], []
        for position, member in enumerate(members):
            value, mine = self.grads.get(member), Limits(high=high[position])
            value = policy.response.values(value, norms[position], mine, self.grads.values_xp)
            norm, turned = self.grads.put(member, value, self.skipped)
            after.append(norm)
            cosine.append(turned)
        found = self.grads.whole(members, xp.stack(after), xp.stack(cosine))
        self.ledger = self.ledger.turned(members, *found, xp)
        return state

    def _one(self, stage: Stage, member: int, state: Memory) -> tuple[Any, Any, Memory]:
        """Run a policy on the values of one member."""
        policy, vxp = stage.policy, self.grads.values_xp
        value = self.grads.get(member)
        basis = None
        if policy.measure.scope == "singular":
            basis = self.grads.singular(member)
            if basis is None:
                flat = vxp.reshape(vxp.abs(value), (-1,))
                basis = None, vxp.reshape(combine(flat, 2.0, vxp), (1,)), None
            norms = basis[1]
        else:
            norms = vxp.abs(value)
        state = policy.threshold.init(norms, vxp) if state is None else state
        seen = Seen(raw=lambda: self.raws.get(member, value))
        limits, state = self._decide(stage, state, norms, seen, None, vxp)
        response = policy.response
        if isinstance(response, Skip):
            new = value
        elif isinstance(response, ValueResponse):
            new = response.values(value, norms, limits, vxp)
        else:
            factors = response.factors(norms, limits, vxp)
            new = _rebuilt(value, basis, norms, factors, vxp)
        norm, turned = self.grads.put(member, new, self.skipped)
        return norm, turned, state

    def _wrapped(self, stage: WrappedStage, state: Memory) -> Memory:
        """Run a plan on what a source makes of the gradients."""
        xp, vxp = self.grads.xp, self.grads.values_xp
        self.flush()
        source, held, kept = stage.source, dict(state["source"]), {}
        for member in stage.members:
            if self._absent(member):
                continue
            raw = self.grads.get(member)
            mine = held.get(str(member)) or {name: vxp.zeros_like(raw) for name in source.holds}
            x, mine = source.enter(raw, mine)
            held[str(member)], kept[member] = mine, (raw, x)
            self.grads.put(member, x, self.skipped)
            self.raws[member] = raw
        outer, self.ledger = self.ledger, self._remeasured(stage.members)
        inner = self.layers(stage.inner, state["inner"])
        self.flush()
        after, cosine = [], []
        for member in stage.members:
            if member not in kept:
                after.append(outer.raw[member])
                cosine.append(xp.ones_like(outer.raw[member]))
                continue
            raw, x = kept[member]
            out, mine = source.leave(x, self.grads.get(member), held[str(member)])
            old = state["source"].get(str(member)) or {n: vxp.zeros_like(raw) for n in source.holds}
            held[str(member)] = self._sound(old, mine)
            norm, turned = self.grads.put(member, out, self.skipped, like=raw)
            after.append(norm)
            cosine.append(turned)
        found = self.grads.whole(stage.members, xp.stack(after), xp.stack(cosine))
        self.ledger = outer.replaced(stage.members, *found, xp)
        return {"source": held, "inner": inner}

    def _remeasured(self, members: Sequence[int]) -> Ledger:
        """Return a ledger that starts at what the members are now."""
        xp = self.grads.xp
        norms = put(
            self.ledger.now, members, self.grads.norms(members, self.ledger.order, None), xp
        )
        return Ledger.start(norms, self.ledger.order, xp)

    def _decide(
        self, stage: Stage, state: Memory, norms: Any, seen: Seen, here: Any, xp: Any = None
    ) -> tuple[Limits, Memory]:
        """Return the limits and the new memory, which only sound norms have entered."""
        xp = self.grads.xp if xp is None else xp
        policy = stage.policy
        limits, new = policy.threshold.update(state, norms, seen, xp)
        keep = ~xp.isfinite(norms) | self._idle()
        keep = keep if here is None else keep | ~here
        new = _where_rows(keep, state, new, xp)
        each = policy.measure.scope in ("element", "singular")
        self._note_limit(limits, alone=not each or len(stage.members) == 1)
        if isinstance(policy.response, Skip):
            self.skipped = self.skipped | policy.response.skips(norms, limits, xp)
        return limits, new

    def _note_limit(self, limits: Limits, *, alone: bool = True) -> None:
        """Keep the upper limit of the first stage, if it is one number."""
        if not self.watched or limits.high is None:
            return
        if isinstance(limits.high, float):
            self.limit = limits.high
        elif limits.high.shape == (1,) and alone:
            self.limit = float(limits.high[0]) if self.grads.host else limits.high[0]

    def _pick(self, values: Any, members: Sequence[int]) -> Any:
        if len(members) == values.shape[0]:
            return values
        return self.grads.xp.take(values, self.grads.xp.asarray(list(members)), axis=0)

    def _here(self, members: Sequence[int], *, whole: bool = False) -> Any:
        """Return which of the measured items have a gradient; None if all do."""
        present = self.grads.somewhere
        if all(present):
            return None
        here = [present[m] for m in members]
        return self.grads.array([float(f) for f in ([any(here)] if whole else here)]) == 1

    def _absent(self, member: int) -> bool:
        return not self.grads.present[member]

    def _idle(self) -> Any:
        """Return whether the step is skipped, for NumPy and for torch: not NumPy's on the host."""
        return bool(self.skipped) if self.grads.host else self.skipped

    def _sound(self, old: Memory, new: Memory) -> Memory:
        """Return what a source remembers: nothing of a skipped step, nor what is not finite."""
        vxp = self.grads.values_xp
        keep = {name: ~vxp.isfinite(new[name]) | self._idle() for name in new}
        return {name: vxp.where(keep[name], old[name], new[name]) for name in new}


def _init_stage(stage: Stage | WrappedStage, grads: Backend) -> Memory:
    if isinstance(stage, WrappedStage):
        source = {
            str(m): {n: grads.values_xp.zeros_like(grads.get(m)) for n in stage.source.holds}
            for m in stage.members
            if grads.present[m]
        }
        return {"source": source, "inner": init(stage.inner, grads)}
    xp, policy = grads.xp, stage.policy
    scope = policy.measure.scope
    some = grads.norms(range(0), 2.0, None)
    if scope in ("element", "singular"):
        return _init_values(stage, grads)
    if scope == "unit":
        norms, _, _ = grads.unit_norms(stage.members, 2.0, policy.measure.axis)
    else:
        count = len(stage.members) if scope == "tensor" else 1
        norms = xp.broadcast_to(xp.sum(some), (count,))
    return policy.threshold.init(xp.zeros_like(norms), xp)


def _init_values(stage: Stage, grads: Backend) -> Memory:
    policy, vxp = stage.policy, grads.values_xp
    members = [member for member in stage.members if grads.present[member]]
    grads.refuse_complex(stage.members)
    if not policy.threshold.init(grads.norms(range(0), 2.0, None), grads.xp):
        return {str(member): {} for member in members}  # A copy of the values for nothing.
    memory = {}
    for member in members:
        value = vxp.abs(grads.get(member))
        if policy.measure.scope == "singular":
            basis = grads.singular(member)
            value = vxp.reshape(vxp.sum(value), (1,)) if basis is None else basis[1]
        memory[str(member)] = policy.threshold.init(vxp.zeros_like(value), vxp)
    return memory


def _loss(grads: Backend, xp: Any) -> Any:
    if grads.loss is None:
        remedy = "the policy looks at the loss: pass it to the step, as in clip_(loss=loss)"
        raise PolicyError.of("loss", None, remedy)
    return xp.reshape(xp.asarray(grads.loss), (1,))


def _weights(grads: Backend, policy: Policy) -> Backend:
    if grads.weights is None:
        remedy = f"{policy!r} compares gradients with weights: pass the weights too"
        raise PolicyError.of("weights", None, remedy)
    return grads.weights


def _rebuilt(value: Any, basis: Any, norms: Any, factors: Any, xp: Any) -> Any:
    """Return values times their factors, or a matrix with its singular values so changed."""
    if basis is None:
        return xp.where(factors == 1, value, value * factors)
    if basis[0] is None:
        return xp.where(factors[0] == 1, value, value * factors[0])
    left, _, right = basis
    matrix = (left * (norms * factors)[None, :]) @ right
    return xp.where(xp.all(factors == 1), value, xp.reshape(matrix, value.shape))


def _where_rows(keep: Any, old: Memory, new: Memory, xp: Any) -> Memory:
    """Keep whole rows of a memory: the first axes count the measured items."""
    if isinstance(new, dict):
        return {name: _where_rows(keep, old[name], new[name], xp) for name in new}
    mask = xp.reshape(keep, keep.shape + (1,) * (new.ndim - keep.ndim))
    # In float32 the square of a finite norm can be infinite: that must not stay for ever.
    mask = mask | (xp.isfinite(old) & ~xp.isfinite(new))
    return xp.where(mask, old, new)
