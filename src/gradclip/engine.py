"""The one pass that every backend shares: measure → threshold → response → apply → result.

A backend knows how to measure gradients and how to apply factors to them (`Backend`); which
norm goes with which limit, what enters a memory and what a step did is decided here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from .measure import combine
from .policy import Policy, Stage
from .result import ClipResult
from .threshold import Limits, State

__all__ = ["Backend", "NonFinite", "Plan", "run"]

NonFinite = Literal["skip", "zero", "raise", "propagate"]
Plan = tuple[tuple[Stage, ...], ...]
States = list[list[State]]


class Backend(Protocol):
    """The gradients of one step, and all that a backend can do with them.

    `members` are indices into the gradients. What changes gradients does so for the holder;
    `keep`, where given, is a scalar boolean: true leaves every value as it is.
    """

    xp: Any
    host: bool
    names: tuple[str, ...]
    sizes: Any

    @property
    def path(self) -> str: ...

    def norms(self, members: Sequence[int], order: float) -> Any:
        """Return the p-norm of each member, shape (members,), in float64 where there is one."""
        ...

    def unit_norms(self, member: int, order: float, axis: int | None) -> Any:
        """Return the p-norm of each unit of one member, shape (units,)."""
        ...

    def scale(self, factors: Any) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        ...

    def scale_units(self, member: int, factors: Any, axis: int | None) -> None:
        """Multiply each unit of one member by its factor, shape (units,)."""
        ...

    def map(
        self, members: Sequence[int], norms: Any, response: Any, limits: Limits, keep: Any
    ) -> tuple[Any, Any]:
        """Apply an elementwise response to the members, whose 2-norms are given.

        Returns each member's 2-norm after it, and its cosine to what it was: exactly 1 where
        nothing changed.
        """
        ...


@dataclass(frozen=True)
class _Ledger:
    """What has been done to the gradients so far.

    raw, now: norms per gradient at the start and now, in `order`. cosine: of each gradient to
    its raw self. pending: factors decided but not applied yet, shape () while one factor holds
    for all. uniform: that one factor still tells the whole story.
    """

    order: float
    raw: Any
    now: Any
    cosine: Any
    pending: Any
    uniform: bool
    changed: Any


def run(
    plan: Plan, states: States | None, grads: Backend, *, nonfinite: NonFinite
) -> tuple[States, Any, ClipResult]:
    """Clip the gradients that `grads` holds.

    Args:
        plan: the layers of stages, from `policy.plan` over all gradients' names.
        states: the memory of each stage; None at the first step; not mutated.
        grads: the gradients; changed, except for the factors returned.
        nonfinite: "skip" changes nothing when a norm is not finite; "propagate" computes on.
            The other decisions are the backend's, before or after this.

    Returns:
        The new memory, the factors that remain to be applied (shape () or (gradients,)), and
        the result.
    """
    xp = grads.xp
    everything = tuple(range(len(grads.names)))
    order = _common_order(plan, len(everything))
    raw = grads.norms(everything, order)
    total = combine(raw, order, xp)
    finite = xp.isfinite(total)
    skipped = ~finite if nonfinite == "skip" else finite & ~finite
    one = xp.ones_like(total)
    ledger = _Ledger(order, raw, raw, xp.ones_like(raw), one, True, finite & ~finite)
    limit: Any = None
    new_states: States = []
    # On the host a step to be skipped is known here; a device decides by masks instead.
    skip_all = grads.host and bool(skipped)
    for depth, layer in enumerate(plan):
        old = states[depth] if states is not None else [None] * len(layer)
        layer_states = []
        for stage, state in zip(layer, old, strict=True):
            if skip_all or not stage.members:
                layer_states.append(state if state is not None else {})
                continue
            ledger, state, limits = _stage(stage, state, grads, ledger, skipped)
            limit = limits.high if depth == 0 and len(layer) == 1 else limit
            layer_states.append(state)
        new_states.append(layer_states)
    result = _result(grads, ledger, total, skipped, limit)
    return new_states, xp.where(skipped, xp.ones_like(ledger.pending), ledger.pending), result


def _common_order(plan: Plan, count: int) -> float:
    """Return the order that the whole-gradient norm is taken in."""
    policies = [stage.policy for layer in plan for stage in layer]
    orders = {policy.measure.order for policy in policies}
    whole = all(
        stage.policy.measure.scope == "global" and len(stage.members) == count
        for layer in plan
        for stage in layer
    )
    order = orders.pop() if whole and len(orders) == 1 else 2.0
    return order if isinstance(order, float) else 2.0


def _stage(
    stage: Stage, state: State | None, grads: Backend, ledger: _Ledger, skipped: Any
) -> tuple[_Ledger, State, Limits]:
    """Run one policy on its members."""
    scope = stage.policy.measure.scope
    if scope == "element":
        return _element_stage(stage, state, grads, ledger, skipped)
    if scope == "unit":
        return _unit_stage(stage, state, grads, ledger, skipped)
    xp, policy, members = grads.xp, stage.policy, list(stage.members)
    order = 2.0 if policy.measure.order == "rms" else policy.measure.order
    assert not isinstance(order, str)
    if order != ledger.order:
        ledger = _flush(grads, ledger, skipped)
        norms = grads.norms(members, order)
    else:
        norms = ledger.now[xp.asarray(members)]
    if scope == "global":
        norms = xp.reshape(combine(norms, order, xp), (1,))
    if policy.measure.order == "rms":
        sizes = grads.sizes[xp.asarray(members)]
        sizes = xp.reshape(xp.sum(sizes), (1,)) if scope == "global" else sizes
        norms = norms / xp.sqrt(xp.where(sizes > 0, sizes, xp.ones_like(sizes)))
    limits, state = _decide(policy, state, norms, skipped, xp)
    factors = policy.response.factors(norms, limits, xp)
    return _scaled(ledger, stage, factors, scope == "global", xp), state, limits


def _scaled(ledger: _Ledger, stage: Stage, factors: Any, whole: bool, xp: Any) -> _Ledger:
    """Enter factors, shape (1,) for all members or (members,), into the ledger."""
    count = ledger.raw.shape[0]
    uniform = whole and len(stage.members) == count and ledger.uniform
    each = factors[0] if uniform else _spread(factors, stage.members, xp.ones_like(ledger.raw), xp)
    return replace(
        ledger,
        now=ledger.now * each,
        pending=ledger.pending * each,
        uniform=uniform,
        changed=ledger.changed | xp.any(factors != 1),
    )


def _spread(values: Any, members: Sequence[int], base: Any, xp: Any) -> Any:
    """Return `base`, shape (count,), with the members' values, (members,) or (1,), put in."""
    count = base.shape[0]
    if len(members) == count:
        return values if values.shape[0] == count else xp.broadcast_to(values, (count,))
    single = values.shape[0] == 1
    source = list(range(count))
    for position, member in enumerate(members):
        source[member] = count + (0 if single else position)
    return xp.concat([base, values])[xp.asarray(source)]


def _element_stage(
    stage: Stage, state: State | None, grads: Backend, ledger: _Ledger, skipped: Any
) -> tuple[_Ledger, State, Limits]:
    """Run an elementwise policy."""
    xp, policy = grads.xp, stage.policy
    ledger = _flush(grads, ledger, skipped)
    norms = ledger.now[xp.asarray(list(stage.members))]
    limits, state = _decide(policy, state, norms, skipped, xp)
    after, cosine = grads.map(stage.members, norms, policy.response, limits, skipped)
    return _turned(ledger, stage, after, cosine, xp), state, limits


def _unit_stage(
    stage: Stage, state: State | None, grads: Backend, ledger: _Ledger, skipped: Any
) -> tuple[_Ledger, State, Limits]:
    """Run a policy that has one norm, and one factor, for each unit of each member."""
    xp, policy = grads.xp, stage.policy
    order, axis = policy.measure.order, policy.measure.axis
    ledger = _flush(grads, ledger, skipped)
    parts = [grads.unit_norms(member, order, axis) for member in stage.members]
    limits, state = _decide(policy, state, xp.concat(parts), skipped, xp)
    factors = policy.response.factors(xp.concat(parts), limits, xp)
    factors = xp.where(skipped, xp.ones_like(factors), factors)
    start, after, cosine = 0, [], []
    for member, part in zip(stage.members, parts, strict=True):
        mine = factors[start : start + part.shape[0]]
        start += part.shape[0]
        sizes = part if order == 2.0 else grads.unit_norms(member, 2.0, axis)
        grads.scale_units(member, mine, axis)
        before, now = combine(sizes, 2.0, xp), combine(sizes * mine, 2.0, xp)
        after.append(now)
        cosine.append(_cosine(sizes, sizes * mine, before, now, xp))
    return _turned(ledger, stage, xp.stack(after), xp.stack(cosine), xp), state, limits


def _cosine(a: Any, b: Any, norm_a: Any, norm_b: Any, xp: Any) -> Any:
    """Return Σ aᵢbᵢ/(‖a‖‖b‖) of parts that point the same way; 1 where a norm is 0."""
    usable = (norm_a > 0) & (norm_b > 0)
    one = xp.ones_like(norm_a)
    share = (a / xp.where(usable, norm_a, one)) * (b / xp.where(usable, norm_b, one))
    same = xp.all(a == b)
    return xp.where(usable & ~same, xp.minimum(xp.sum(share), one), one)


def _turned(ledger: _Ledger, stage: Stage, after: Any, cosine: Any, xp: Any) -> _Ledger:
    """Enter a change of direction: the members' norms after it, and cosines across it."""
    now = _spread(after, stage.members, ledger.now, xp)
    cosine = _spread(cosine, stage.members, xp.ones_like(ledger.now), xp)
    # Cosines compose only if one of the two changes kept the direction.
    unknown = xp.full_like(cosine, xp.nan)
    known = xp.where(ledger.cosine == 1, cosine, xp.where(cosine == 1, ledger.cosine, unknown))
    changed = ledger.changed | xp.any(now != ledger.now) | xp.any(cosine != 1)
    return replace(ledger, now=now, cosine=known, uniform=False, changed=changed)


def _flush(grads: Backend, ledger: _Ledger, skipped: Any) -> _Ledger:
    """Apply what is pending, since the next step reads the values."""
    xp = grads.xp
    one = xp.ones_like(ledger.pending)
    grads.scale(xp.where(skipped, one, ledger.pending))
    return replace(ledger, pending=one)


def _decide(
    policy: Policy, state: State | None, norms: Any, skipped: Any, xp: Any
) -> tuple[Limits, State]:
    """Return the limits and the new memory, which no non-finite norm or skipped step enters."""
    if state is None:
        state = policy.threshold.init(norms, xp)
    limits, new = policy.threshold.update(state, norms, xp)
    keep = ~xp.isfinite(norms) | skipped
    return limits, {name: _where_rows(keep, state[name], new[name], xp) for name in new}


def _where_rows(mask: Any, yes: Any, no: Any, xp: Any) -> Any:
    """Select whole rows: the first axis of a memory counts the measured items."""
    return xp.where(xp.reshape(mask, mask.shape + (1,) * (no.ndim - 1)), yes, no)


def _result(grads: Backend, ledger: _Ledger, total: Any, skipped: Any, limit: Any) -> ClipResult:
    xp = grads.xp
    one, zero = xp.ones_like(total), xp.zeros_like(total)
    if ledger.uniform:
        after = total * ledger.pending
        removed = xp.abs(1 - ledger.pending)
        cosine = one
    else:
        after = combine(ledger.now, ledger.order, xp)
        safe = xp.where(total > 0, total, one)
        was, left = ledger.raw / safe, ledger.now / safe
        # ‖a-b‖² = (|a|-|b|)² + 2|a||b|(1-cos): nothing cancels where the direction stayed.
        apart = 2 * was * left * (1 - ledger.cosine)
        removed = combine(xp.sqrt((was - left) ** 2 + apart), 2.0, xp)
        shares = was * (ledger.now / xp.where(after > 0, after, one)) * ledger.cosine
        turned = xp.any(ledger.cosine != 1) | xp.any(ledger.now * total != ledger.raw * after)
        cosine = xp.where((total > 0) & (after > 0) & turned, xp.sum(shares), one)
    coef = xp.where(total > 0, after / xp.where(total > 0, total, one), one)
    high = limit if isinstance(limit, float) else xp.nan
    if limit is not None and not isinstance(limit, float) and limit.shape == (1,):
        high = limit[0]
    return ClipResult(
        total_norm=total,
        clipped_norm=xp.where(skipped, total, after),
        coef=xp.where(skipped, one, coef),
        clipped=ledger.changed & ~skipped,
        skipped=skipped,
        removed=xp.where(skipped, zero, removed),
        cosine=xp.where(skipped, one, cosine),
        limit=high + zero if not isinstance(high, float) else xp.full_like(total, high),
        norms=ledger.raw,
        names=grads.names,
        path=grads.path,
    )
