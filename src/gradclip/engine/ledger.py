"""What a pass has done to the gradients so far, kept as one number for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..arrays import Cosines, Factors, Flag, Namespace, Norms, Scalar
from ..method.measure import combine
from .backend import Reader
from .result import ClipResult

__all__ = ["Ledger", "put"]


@dataclass(frozen=True)
class Ledger:
    """The norms of the gradients, then and now.

    Attributes:
        order: the p of all norms here.
        raw: shape (gradients,), the norms at the start.
        total: the norm of all of them together, at the start.
        now: shape (gradients,), the norms with everything that was decided.
        cosine: shape (gradients,), of each gradient now to itself at the start.
        pending: factors that were decided and not applied yet, shape () or (gradients,).
        uniform: whether one factor, `pending`, tells the whole story.
        changed: whether anything was changed.
    """

    order: float
    raw: Norms
    total: Scalar
    now: Norms
    cosine: Cosines
    pending: Factors
    uniform: bool
    changed: Flag

    @classmethod
    def start(cls, norms: Norms, order: float, xp: Namespace) -> Ledger:
        """Return the ledger of gradients that nothing happened to."""
        total = combine(norms, order, xp)
        one = xp.ones_like(total)
        return cls(order, norms, total, norms, xp.ones_like(norms), one, True, one != one)

    def scaled(
        self, members: Sequence[int], factors: Factors, *, together: bool, grads: Reader
    ) -> Ledger:
        """Enter factors, shape (1,) for all members together, or (members,)."""
        xp = grads.xp
        uniform = together and len(members) == self.raw.shape[0] and self.uniform
        each = factors[0] if uniform else put(xp.ones_like(self.raw), members, factors, grads)
        return replace(
            self,
            now=self.now * each,
            pending=self.pending * each,
            uniform=uniform,
            changed=self.changed | xp.any(factors != 1),
        )

    def turned(
        self, members: Sequence[int], norms: Norms, cosine: Cosines, grads: Reader
    ) -> Ledger:
        """Enter a change of direction: the members' new norms, and cosines across the change."""
        xp = grads.xp
        across = put(xp.ones_like(self.cosine), members, cosine, grads)
        return self.turned_to(put(self.now, members, norms, grads), across, xp)

    def turned_to(self, norms: Norms, across: Cosines, xp: Namespace) -> Ledger:
        """Enter a change of direction of all gradients: as `turned`, with shapes (gradients,)."""
        now = _unless_same(self.now, norms, across, xp)
        # Cosines compose only where one of the two changes kept the direction.
        both = xp.where(across == 1, self.cosine, xp.full_like(across, xp.nan))
        changed = xp.any(now != self.now) | xp.any(across != 1)
        return replace(
            self,
            now=now,
            cosine=xp.where(self.cosine == 1, across, both),
            uniform=False,
            changed=self.changed | changed,
        )

    def replaced(
        self, members: Sequence[int], norms: Norms, cosine: Cosines, grads: Reader
    ) -> Ledger:
        """Enter new gradients: their norms, and their cosines to the raw ones."""
        now = put(self.now, members, norms, grads)
        return self.replaced_by(now, put(self.cosine, members, cosine, grads), grads.xp)

    def replaced_by(self, norms: Norms, cosine: Cosines, xp: Namespace) -> Ledger:
        """Enter new gradients for all: as `replaced`, with shapes (gradients,)."""
        now = _unless_same(self.raw, norms, cosine, xp)
        changed = xp.any(now != self.raw) | xp.any(cosine != 1)
        return replace(self, now=now, cosine=cosine, uniform=False, changed=self.changed | changed)

    def result(
        self, names: tuple[str, ...], limit: Scalar | float | None, xp: Namespace
    ) -> ClipResult:
        """Return what was done, in a step that is not skipped.

        Args:
            names: the names of the gradients.
            limit: the upper limit, if it is one number.
            xp: the array namespace of the norms.
        """
        total, after, removed, cosine = self.summary(xp)
        one = xp.ones_like(total)
        limit = xp.nan if limit is None else limit
        return ClipResult(
            total_norm=total,
            clipped_norm=after,
            coef=xp.where(total > 0, after / xp.where(total > 0, total, one), one),
            clipped=self.changed,
            skipped=one != one,
            removed=removed,
            cosine=cosine,
            limit=xp.where(xp.isfinite(total), limit * one, xp.nan * one),
            norms=self.raw,
            names=names,
        )

    def summary(self, xp: Namespace) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        """Return the total norm before and after, the share removed, and the cosine."""
        total, one = self.total, xp.ones_like(self.total)
        if self.uniform:
            return total, total * self.pending, xp.abs(1 - self.pending), one
        after = combine(self.now, self.order, xp)
        safe = xp.where(total > 0, total, one)
        was, left = self.raw / safe, self.now / safe
        # ‖a-b‖² = (|a|-|b|)² + 2|a||b|(1-cos): nothing cancels where the direction stayed.
        apart = (was - left) ** 2 + 2 * was * left * (1 - self.cosine)
        removed = combine(xp.sqrt(apart), 2.0, xp) * (total > 0)  # Nothing is no share of nothing.
        shares = was * (self.now / xp.where(after > 0, after, one)) * self.cosine
        kept = xp.all(self.cosine == 1) & xp.all(self.now * total == self.raw * after)
        known = (total > 0) & (after > 0) & ~kept
        return total, after, removed, xp.where(known, xp.sum(shares), one)


def _unless_same(old: Norms, new: Norms, cosine: Cosines, xp: Namespace) -> Norms:
    """Return the new norms, but the old one of what did not change: it may be rounded otherwise."""
    return xp.where((cosine == 1) & (old > 0) & (new > 0), old, new)


def put(base: Norms, members: Sequence[int], values: Norms, grads: Reader) -> Norms:
    """Return `base`, shape (count,), with the members' values, (members,) or (1,), put in."""
    count, xp = base.shape[0], grads.xp
    if len(members) == count:
        return values if values.shape[0] == count else xp.broadcast_to(values, (count,))
    single = values.shape[0] == 1
    source = list(range(count))
    for position, member in enumerate(members):
        source[member] = count + (0 if single else position)
    return grads.take(xp.concat([base, values]), source)
