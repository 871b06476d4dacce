"""The seam between the engine and a library of arrays: what a backend reads, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeGuard

from ..arrays import Array, Cosines, Factors, Flag, Namespace, Norms, Sizes, Values
from ..method.axes import Axis
from ..method.response import Clamp
from ..method.threshold import Limits

__all__ = [
    "Backend",
    "Change",
    "ClampTo",
    "Decompose",
    "Measured",
    "Reader",
    "Relative",
    "Spectrum",
    "Units",
    "writes",
]

Spectrum = tuple[Array | None, Norms, Array | None]
"""U, σ, Vᵀ of a matrix; U and Vᵀ are None for a vector that lies in pieces."""
Decompose = Callable[[], Spectrum | None]
"""Returns the decomposition of the gradient at hand; None for a vector that is all here."""


class Measured(NamedTuple):
    """What one read of all gradients tells.

    Attributes:
        norms: shape (gradients,), in float64 where there is one.
        here: which gradients exist, in this process or in any other.
    """

    norms: Norms
    here: Sequence[bool]


class Units(NamedTuple):
    """The units of some members, one member after the other.

    Attributes:
        norms: shape (units,), in float64 where there is one.
        sizes: shape (units,), the number of values in each unit, as floats.
        counts: how many units each member has.
        here: which of all gradients exist; None where only `measure` can tell.
    """

    norms: Norms
    sizes: Sizes
    counts: list[int]
    here: Sequence[bool] | None


class Relative(NamedTuple):
    """The measure in which each value counts: rel·|w| + least, with w the weight at its place.

    Attributes:
        rel: ≥ 0.
        least: > 0.
        weights: the weights, read by the same backend as the gradients.
    """

    rel: float
    least: float
    weights: Reader


class Reader(Protocol):
    """The gradients of one step, as what can be measured.

    Members are indices into the gradients.
    """

    @property
    def xp(self) -> Namespace:
        """The array namespace of norms, factors and limits."""
        ...

    @property
    def values_xp(self) -> Namespace:
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
    def sizes(self) -> Sizes:
        """The number of values of each gradient, shape (gradients,), as floats.

        The number of a gradient that does not exist means nothing.
        """
        ...

    def measure(self, order: float) -> Measured:
        """Return the p-norm of every gradient, and which gradients exist, in one read."""
        ...

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Norms:
        """Return the p-norm of each member, shape (members,), in float64 where there is one."""
        ...

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        """Return the p-norm of each unit of each member."""
        ...

    def take(self, values: Norms, places: Sequence[int]) -> Norms:
        """Return values[places], shape (places,)."""
        ...

    def spread(self, values: Norms, counts: list[int]) -> Norms:
        """Return each member's value once for each of its units: from (members,) to (units,)."""
        ...

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,).

        Summed in float64 where there is one, so that a root is right where its square vanishes.
        """
        ...


class Change(Protocol):
    """What `Backend.edit` is to make of the values of one gradient."""

    def __call__(self, member: int, value: Values, decompose: Decompose, /) -> Values | None:
        """Return the new values; None leaves the gradient as it is.

        Args:
            member: the index of the gradient.
            value: its values, in at least float32; not mutated. With several processes, those
                that this process has.
            decompose: returns the singular values and vectors of the whole gradient.
        """
        ...


@dataclass(frozen=True)
class ClampTo:
    """The change that a backend may know a shortcut for: clamp every value to the same limits.

    Attributes:
        limits: two numbers.
        norms: shape (members,), the 2-norms of the members before the change.
        xp: the array namespace of the values.
    """

    limits: Limits
    norms: Norms
    xp: Namespace

    def __call__(self, member: int, value: Values, decompose: Decompose) -> Values:  # noqa: ARG002
        """Return the clamped values."""
        return Clamp().values(value, None, self.limits, self.xp)


class Backend(Reader, Protocol):
    """The gradients of one step, as what can be measured and changed."""

    def scale(self, factors: Factors) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        ...

    def scale_units(self, members: Sequence[int], factors: Factors, axis: Axis) -> None:
        """Multiply each unit of each member by its factor, shape (units,)."""
        ...

    def saturate(self) -> None:
        """Have what is finite stay finite in `scale` and `scale_units`: a factor may be over 1.

        The engine says so before it gives such factors. A backend for which the check costs nothing
        makes it always.
        """
        ...

    def edit(
        self,
        members: Sequence[int],
        change: Change,
        keep: Flag,
        like: Mapping[int, Values] | None = None,
        *,
        measured: bool = True,
    ) -> tuple[Norms, Cosines]:
        """Change the values of each member that exists in this process.

        Args:
            members: which gradients, in the order in which `change` meets them.
            change: gives the new values.
            keep: if true, every gradient stays as it is.
            like: what to compare the new values with, by member, in place of the old values.
            measured: whether anybody needs the norms and cosines.

        Returns:
            Two arrays of shape (members,), of the whole gradients over all processes: the
            2-norms of what is stored, and their cosines to what was there, or to `like`; the
            cosine is exactly 1 where they are equal. The norm 0 and the cosine 1 stand for a
            gradient that does not exist, and for everything that is not measured.

        Raises:
            PolicyError: a member is complex, and complex values have no order; no gradient is
                changed then.
        """
        ...


def writes(grads: Reader) -> TypeGuard[Backend]:
    """Return whether the gradients can be changed, and not only measured."""
    return hasattr(grads, "edit")
