"""One pass over a plan: stage after stage, what is measured, decided and changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..arrays import Factors, Flag, Memory, Namespace, Norms, Scalar, State, Values
from ..errors import PolicyError
from ..method.measure import combine
from ..method.plan import Plan, Stage, WrappedStage
from ..method.policy import Policy
from ..method.response import Clamp, Power, ShrinkSpikes, Skip, ValueResponse
from ..method.table import tables
from ..method.threshold import Context, Limits
from .backend import Backend, ClampTo, Decompose, Reader, Relative, Spectrum, Units, writes
from .ledger import Ledger, put
from .memory import keep_rows
from .result import ClipResult

__all__ = ["Pass"]


@dataclass
class Pass:
    """One run over the plan: what is being worked on, and what is known of it.

    Attributes:
        grads: the gradients.
        here: which of them exist, in any process.
        ledger: what has happened to them so far.
        skipped: whether this step must not reach the weights.
        step: how many steps came before.
        loss: returns the loss of the step.
        weights: returns the weights.
        units: the norms of all units, which the first stage is about to ask for.
        raws: inside of a wrapper, its gradients before the wrapper, by member.
        limit: the upper limit of the first stage, if that is one number.
        watched: whether `limit` is to be noted.
    """

    grads: Reader
    here: Sequence[bool]
    ledger: Ledger
    skipped: Flag
    step: Scalar | int
    loss: Callable[[], Scalar | float | None] | None
    weights: Callable[[], Reader] | None
    units: Units | None
    raws: dict[int, Values] = field(default_factory=dict)
    limit: Scalar | float | None = None
    watched: bool = False
    known_weights: Reader | None = None
    known_loss: Scalar | float | None = None

    def layers(self, plan: Plan, memory: Memory) -> Memory:
        """Run layer after layer; return the new memory."""
        new = []
        for depth, (layer, old) in enumerate(zip(plan, memory, strict=True)):
            self.watched = depth == 0 and len(layer) == 1 and not self.raws
            done = []
            for stage, state in zip(layer, old, strict=True):
                # On the host a step to be skipped is known; a device decides by masks instead.
                idle = not stage.members or (self.grads.host and bool(self.skipped))
                done.append(state if idle else self._stage(stage, state))
            new.append(done)
        return new

    def pending(self) -> Factors:
        """Return the factors that were not applied yet."""
        one = self.grads.xp.ones_like(self.ledger.pending)
        return self._unless_skipped(self.ledger.pending, one)

    def result(self) -> ClipResult:
        """Say what was done."""
        done = self.ledger.result(self.grads.names, self.limit, self.grads.xp)
        total, one = done.total_norm, self.grads.xp.ones_like(done.total_norm)
        return replace(
            done,
            clipped_norm=self._unless_skipped(done.clipped_norm, total),
            coef=self._unless_skipped(done.coef, one),
            clipped=done.clipped & ~self.skipped,
            skipped=self.skipped,
            removed=self._unless_skipped(done.removed, 0 * one),
            cosine=self._unless_skipped(done.cosine, one),
        )

    @property
    def _writer(self) -> Backend:
        """The gradients, to be changed."""
        assert writes(self.grads), "only norms are known here, and the plan changes gradients"
        return self.grads

    def _stage(self, stage: Stage | WrappedStage, state: State) -> State:
        """Run one stage on its members; return its new memory."""
        if isinstance(stage, WrappedStage):
            return self._wrapped(stage, state)
        scope = stage.policy.measure.scope
        if scope in ("element", "singular"):
            return self._values(stage, state)
        if isinstance(stage.policy.response, ValueResponse):
            return self._spikes(stage, state)
        return self._units(stage, state) if scope == "unit" else self._norms(stage, state)

    def _flush(self) -> None:
        """Apply what is pending, since the next stage reads the values."""
        self._writer.scale(self.pending())
        self.ledger = replace(self.ledger, pending=self.grads.xp.ones_like(self.skipped * 1.0))

    def _unless_skipped(self, value: Scalar, otherwise: Scalar) -> Scalar:
        if self.grads.host:
            return otherwise if bool(self.skipped) else value
        return self.grads.xp.where(self.skipped, otherwise, value)

    def _norms(self, stage: Stage, state: State) -> State:
        """Run a policy with one norm for each member, or one for all, or none but the loss."""
        measure, members = stage.policy.measure, stage.members
        together = measure.scope != "tensor"
        context = Context(
            weights=lambda: self._of(self._weights(stage.policy), stage),
            norms=lambda order: self._of(self.grads, _in_order(stage, order)),
        )
        norms = self._loss() if measure.scope == "loss" else self._of(self.grads, stage)
        here = self._here(members, together=together)
        limits, state = self._decide(stage, state, norms, context, here)
        factors = self._factors(stage.policy, norms, limits)
        self.ledger = self.ledger.scaled(members, factors, together=together, grads=self.grads)
        return state

    def _factors(self, policy: Policy, norms: Norms, limits: Limits) -> Factors:
        """Return the factors of a policy; if one may be over 1, the writer hears of it first."""
        response = policy.response
        assert not isinstance(response, ValueResponse)
        if (response.enlarges or limits.low is not None) and writes(self.grads):
            self.grads.saturate()
        return response.factors(norms, limits, self.grads.xp)

    def _of(self, what: Reader, stage: Stage) -> Norms:
        """Return the norms that a stage looks at, of the gradients or of the weights."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        known = what is self.grads and measure.relative is None
        if known and measure.power == self.ledger.order:
            norms = self._pick(self.ledger.now, members)
        else:
            if what is self.grads:
                self._flush()
            norms = what.norms(members, measure.power, self._relative(stage.policy))
        together = measure.scope == "global"
        if together:
            untouched = norms is self.ledger.raw  # The first stage's: measured already.
            total = self.ledger.total if untouched else combine(norms, measure.power, xp)
            norms = xp.reshape(total, (1,))
        if not isinstance(measure.order, str):
            return norms
        sizes, here = self._pick(self.grads.sizes, members), self._here(members)
        sizes = sizes if here is None else xp.where(here, sizes, 0 * sizes)
        return measure.per_size(norms, xp.reshape(xp.sum(sizes), (1,)) if together else sizes, xp)

    def _relative(self, policy: Policy) -> Relative | None:
        pair = policy.measure.relative
        return None if pair is None else Relative(*pair, self._weights(policy))

    def _units(self, stage: Stage, state: State) -> State:
        """Run a policy with one norm, and one factor, for each unit of each member."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        self._flush()
        norms, counts = self._unit_norms(self.grads, stage)
        context = Context(weights=lambda: self._unit_norms(self._weights(stage.policy), stage)[0])
        owners = [] if all(self.here) else np.repeat(members, counts).tolist()
        here = self._here(owners)
        limits, state = self._decide(stage, state, norms, context, here)
        factors = self._factors(stage.policy, norms, limits)
        factors = xp.where(self.skipped, xp.ones_like(factors), factors)
        if self.grads.host and bool(xp.all(factors == 1)):
            return state
        self._turn_units(stage, norms, factors, counts)
        self._writer.scale_units(members, factors, measure.axis)
        return state

    def _turn_units(self, stage: Stage, norms: Norms, factors: Factors, counts: list[int]) -> None:
        """Enter what factors for units do to each member's norm and direction."""
        xp, measure, members = self.grads.xp, stage.policy.measure, stage.members
        if measure.order != 2.0:
            norms = self.grads.unit_norms(members, 2.0, measure.axis).norms
        known = self.ledger.order == 2.0
        before = self._pick(self.ledger.now, members) if known else self.grads.norms(members, 2.0)
        one = xp.ones_like(before)
        # In units of the member's own norm no square overflows.
        scale = xp.where((before > 0) & xp.isfinite(before), before, one)
        shares = norms / self.grads.spread(scale, counts)
        left = shares * factors
        after = self.grads.unit_dots(left, left, counts, root=True)
        length = xp.where(after > 0, after, one)
        both = self.grads.unit_dots(shares, left / self.grads.spread(length, counts), counts)
        other = xp.where(factors == 1, xp.zeros_like(factors), xp.ones_like(factors))
        turned = self.grads.unit_dots(other, other, counts)
        usable = (turned > 0) & (before > 0) & (after > 0)
        # 1 would mean that nothing changed, whatever rounding says.
        most = one - xp.finfo(one.dtype).eps / 2
        cosine = xp.where(usable, xp.where(both < most, both, most), one)
        ledger = self.ledger.turned(members, after * scale, cosine, self.grads)
        # A small unit's change can be lost in the norms: ask the factors.
        self.ledger = replace(ledger, changed=self.ledger.changed | xp.any(factors != 1))

    def _unit_norms(self, what: Reader, stage: Stage) -> tuple[Norms, list[int]]:
        measure = stage.policy.measure
        known = None
        if what is self.grads:
            known, self.units = self.units, None  # Of the first stage, and before its factors.
        units = known or what.unit_norms(stage.members, measure.power, measure.axis)
        return measure.per_size(units.norms, units.sizes, self.grads.xp), units.counts

    def _values(self, stage: Stage, state: State) -> State:
        """Run a policy that changes values one by one, or singular values."""
        xp, policy, members = self.grads.xp, stage.policy, stage.members
        self._flush()
        now = self._pick(self.ledger.now, members)
        fixed = policy.measure.scope == "element" and not policy.threshold.init(now, xp)
        if fixed and isinstance(policy.response, Clamp) and not any(tables(policy.threshold)):
            limits, _ = policy.threshold.update({}, now, Context(step=self.step), xp)
            self._note_limit(limits)
            clamp = ClampTo(limits, now, self.grads.values_xp)
            self._turn(members, self._writer.edit(members, clamp, self.skipped))
            return state
        new = dict(state)

        def change(member: int, value: Values, decompose: Decompose) -> Values | None:
            mine = state.get(str(member))
            value, new[str(member)] = self._one(stage, member, value, decompose, mine)
            return value

        only_looks = isinstance(policy.response, Skip)
        found = self._writer.edit(members, change, self.skipped, measured=not only_looks)
        self._turn(members, (now, xp.ones_like(now)) if only_looks else found)
        return new

    def _spikes(self, stage: Stage, state: State) -> State:
        """Run a policy with one norm for each member, which changes values one by one."""
        vxp, response, members = self.grads.values_xp, stage.policy.response, stage.members
        assert isinstance(response, ShrinkSpikes | Power)
        self._flush()
        norms = self._of(self.grads, stage)
        context = Context(norms=lambda order: self._of(self.grads, _in_order(stage, order)))
        limits, state = self._decide(stage, state, norms, context, self._here(members))
        xp = self.grads.xp
        high = limits.high + xp.zeros_like(norms)
        # A limit equal to the size cuts nothing, too, and a product with it has a derivative.
        high = xp.where(high < xp.inf, high, response.sizes(norms, xp))
        places = {member: place for place, member in enumerate(members)}

        def change(member: int, value: Values, decompose: Decompose) -> Values:  # noqa: ARG001
            place = places[member]
            return response.values(value, norms[place], Limits(high=high[place]), vxp)

        self._turn(members, self._writer.edit(members, change, self.skipped))
        return state

    def _one(
        self, stage: Stage, member: int, value: Values, decompose: Decompose, state: State | None
    ) -> tuple[Values | None, State]:
        """Run a policy on the values of one member; return the new values and its memory."""
        policy, vxp = stage.policy, self.grads.values_xp
        basis = None
        if policy.measure.scope == "singular":
            basis = decompose()
            if basis is None:
                flat = vxp.reshape(vxp.abs(value), (-1,))
                basis = None, vxp.reshape(combine(flat, 2.0, vxp), (1,)), None
            norms = basis[1]
        else:
            norms = vxp.abs(value)
        state = policy.threshold.init(norms, vxp) if state is None else state
        context = Context(raw=lambda: self.raws.get(member, value))
        limits, state = self._decide(stage, state, norms, context, None, vxp)
        response = policy.response
        if isinstance(response, Skip):
            return None, state
        if isinstance(response, ValueResponse):
            return response.values(value, norms, limits, vxp), state
        factors = response.factors(norms, limits, vxp)
        return _rebuilt(value, basis, norms, factors, vxp), state

    def _wrapped(self, stage: WrappedStage, state: State) -> State:
        """Run a plan on what a source makes of the gradients."""
        vxp, source, members = self.grads.values_xp, stage.source, stage.members
        self._flush()
        held: State = dict(state["source"])
        raws: dict[int, Values] = {}
        entered: dict[int, Values] = {}

        def nothing(raw: Values) -> State:
            return {name: vxp.zeros_like(raw) for name in source.holds}

        def enter(member: int, raw: Values, decompose: Decompose) -> Values:  # noqa: ARG001
            x, held[str(member)] = source.enter(raw, held.get(str(member)) or nothing(raw))
            x = self._within_range(x, raw)
            raws[member], entered[member] = raw, x
            return x

        def leave(member: int, u: Values, decompose: Decompose) -> Values:  # noqa: ARG001
            out, mine = source.leave(entered[member], u, held[str(member)])
            out = self._within_range(out, raws[member])
            old = state["source"].get(str(member)) or nothing(raws[member])
            held[str(member)] = self._sound(old, mine, out)
            return out

        self._writer.edit(members, enter, self.skipped, measured=False)
        self.raws |= raws
        outer, self.ledger = self.ledger, self._remeasured(members)
        inner = self.layers(stage.inner, state["inner"])
        self._flush()
        norms, cosines = self._writer.edit(members, leave, self.skipped, raws)
        self.ledger = outer.replaced(members, norms, cosines, self.grads)
        return {"source": held, "inner": inner}

    def _turn(self, members: Sequence[int], found: tuple[Norms, Norms]) -> None:
        """Enter the members' new norms, and the cosines between the old and the new."""
        self.ledger = self.ledger.turned(members, *found, self.grads)

    def _remeasured(self, members: Sequence[int]) -> Ledger:
        """Return a ledger that starts at what the members are now."""
        xp, order = self.grads.xp, self.ledger.order
        norms = put(self.ledger.now, members, self.grads.norms(members, order), self.grads)
        return Ledger.start(norms, order, xp)

    def _decide(
        self,
        stage: Stage,
        state: State,
        norms: Norms,
        context: Context,
        here: Flag | None,
        xp: Namespace = None,
    ) -> tuple[Limits, State]:
        """Return the limits and the new memory, which only sound norms have entered."""
        xp = self.grads.xp if xp is None else xp
        policy = stage.policy
        context = context._replace(step=self.step)
        limits, new = policy.threshold.update(state, norms, context, xp)
        each = policy.measure.scope in ("element", "singular")
        if not (each and here is None and self._all_sound(norms, new)):
            keep = ~xp.isfinite(norms) | self._idle()
            keep = keep if here is None else keep | ~here
            new = keep_rows(keep, state, new, xp)
        # Of several members only a limit without their shape is one number.
        apart = getattr(limits.high, "shape", None) == norms.shape
        self._note_limit(limits, alone=not each or len(stage.members) == 1 or not apart)
        if isinstance(policy.response, Skip):
            self.skipped = self.skipped | policy.response.skips(norms, limits, xp)
        return limits, new

    def _note_limit(self, limits: Limits, *, alone: bool = True) -> None:
        """Keep the upper limit of the first stage, if it is one number."""
        if not self.watched or limits.high is None:
            return
        if isinstance(limits.high, float):
            self.limit = limits.high
        elif alone and limits.high.shape in ((), (1,)):
            high = limits.high[0] if limits.high.shape else limits.high
            self.limit = float(high) if self.grads.host else high

    def _loss(self) -> Norms:
        """Return the loss, shape (1,), asked for once a pass."""
        if self.known_loss is None and self.loss is not None:
            self.known_loss = self.loss()
        if self.known_loss is None:
            remedy = "the policy looks at the loss: pass it to the step, as in clip_(loss=loss)"
            raise PolicyError.of("loss", None, remedy)
        return self.grads.xp.reshape(self.grads.xp.asarray(self.known_loss), (1,))

    def _weights(self, policy: Policy) -> Reader:
        """Return the weights, made once a pass."""
        if self.known_weights is None:
            if self.weights is None:
                remedy = f"{policy!r} compares gradients with weights: pass the weights too"
                raise PolicyError.of("weights", None, remedy)
            self.known_weights = self.weights()
        return self.known_weights

    def _pick(self, values: Norms, members: Sequence[int]) -> Norms:
        if len(members) == values.shape[0]:
            return values
        return self.grads.take(values, members)

    def _here(self, members: Sequence[int], *, together: bool = False) -> Flag | None:
        """Return which of the measured items have a gradient; None if all do."""
        if all(self.here):
            return None
        here = [self.here[m] for m in members]
        here = [any(here)] if together else here
        if self.grads.host:
            return np.asarray(here)
        one = self.grads.xp.ones_like(self.ledger.total)
        return self.grads.xp.stack([one if each else 0 * one for each in here]) == 1

    def _idle(self) -> Flag:
        """Return whether the step is skipped, for NumPy and for torch: not NumPy's on the host."""
        return bool(self.skipped) if self.grads.host else self.skipped

    def _sound(self, old: State, new: State, out: Values) -> State:
        """Return what a source remembers: nothing of a skipped step, nor what is not finite.

        A copy of the values that go `out`; the caller may change the copy.
        """
        vxp, idle = self.grads.values_xp, self._idle()
        kept: State = {}
        for name, mine in new.items():
            alike = mine is not out and mine.dtype == old[name].dtype
            if alike and self.grads.host and not idle and self._surely_finite(mine):
                kept[name] = mine
            else:
                kept[name] = vxp.where(~vxp.isfinite(mine) | idle, old[name], mine)
        return kept

    def _within_range(self, value: Values, raw: Values) -> Values:
        """Return a sum that a source made, where it left the dtype with the largest finite value.

        What a source remembers is finite, so that only a gradient of inf or NaN makes more of them.
        """
        if self._surely_finite(value):
            return value
        xp = self.grads.values_xp
        over = xp.isfinite(raw) & xp.isinf(value)
        most = xp.full_like(value, xp.finfo(value.dtype).max)
        return xp.where(over, xp.where(value > 0, most, -most), value)

    def _all_sound(self, norms: Norms, new: State) -> bool:
        """Whether a new memory surely keeps nothing of the old one: masks cost many passes."""
        parts = [norms, *new.values()]
        plain = not any(isinstance(part, dict) or part is norms for part in parts[1:])
        return (
            plain and self.grads.host and not self._idle() and all(map(self._surely_finite, parts))
        )

    def _surely_finite(self, value: Values) -> bool:
        """Whether no value is inf or NaN; False on a device, where nobody waits for an answer.

        One read, without a temporary. A sum that leaves the dtype says no, too.
        """
        if not self.grads.host or not value.ndim:  # NumPy makes such an array a number.
            return False
        return math.isfinite(float(self.grads.values_xp.sum(value)))


def _rebuilt(
    value: Values, basis: Spectrum | None, norms: Norms, factors: Factors, xp: Namespace
) -> Values:
    """Return values times their factors, or a matrix with its singular values so changed."""
    if basis is None:
        return xp.where(factors == 1, value, value * factors)
    left, _, right = basis
    if left is None or right is None:
        return xp.where(factors[0] == 1, value, value * factors[0])
    matrix = xp.matmul(left * (norms * factors)[None, :], right)
    return xp.where(xp.all(factors == 1), value, xp.reshape(matrix, value.shape))


def _in_order(stage: Stage, order: float) -> Stage:
    """Return the stage with a measure of another order."""
    policy = stage.policy
    return replace(stage, policy=replace(policy, measure=replace(policy.measure, order=order)))
