"""What one clipping step did, in numbers that cost no extra pass over the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .._publish import publish
from ..arrays import Flag, Norms, Scalar

__all__ = ["ClipResult", "later", "numbers", "said_to_run"]


@dataclass(frozen=True)
class ClipResult:
    """What one step of clipping did.

    The numbers are scalars of the backend that made them: NumPy scalars, or zero-dimensional
    tensors on the device of the gradients. Nothing is copied to the host until it is asked for.

    Attributes:
        total_norm: the norm of all gradients before clipping. The 2-norm, unless the policy is
            one global norm of another order.
        clipped_norm: the same norm after clipping.
        coef: clipped_norm / total_norm, for a global norm the clip coefficient; 1 if the norm
            is 0.
        clipped: whether the policy changed the gradient.
        skipped: whether this step must not reach the weights.
        removed: ‖g - clipped‖ / ‖g‖, the share of the gradient that was cut.
        cosine: the cosine between the gradient and what is left of it; 1 where the direction
            stayed, NaN where it is unknown (two changes of direction in a row).
        limit: the upper limit in force in the policy's first stage; NaN if there is none or it
            differs between the parts of the gradient.
        norms: shape (parameters,), the norm of each gradient before clipping; 0 where a parameter
            has none. Of the order of `total_norm`.
        names: the names of all these parameters.
        ran: what did the work, as in "c-avx2" or "torch"; in "c-avx2+fold" the fused optimizer
            applies the factor, in its own pass.
    """

    total_norm: Scalar
    clipped_norm: Scalar
    coef: Scalar
    clipped: Flag
    skipped: Flag
    removed: Scalar
    cosine: Scalar
    limit: Scalar
    norms: Norms = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    ran: str = ""

    @property
    def nonfinite(self) -> tuple[str, ...]:
        """The names of the parameters whose gradient holds inf or NaN; reads the device."""
        norms = [float(norm) for norm in self.norms]
        return tuple(
            name for name, norm in zip(self.names, norms, strict=True) if not abs(norm) < _INF
        )

    if not TYPE_CHECKING:  # A name that is misspelt stays an error.

        def __getattr__(self, name: str) -> Any:
            """Return a number that `later` has put off; make all of them."""
            make = self.__dict__.get("_make")
            if make is None or name not in self.__dataclass_fields__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            # `_make` stays: another thread, such as the record's, may ask at the same time.
            made = make(self.__dict__.get("_numbers"))
            self.__dict__.update(made)
            return made[name]

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, all of them made."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _repr_html_(self) -> str:
        """Return the numbers and the three largest norms, for a notebook; reads the device."""
        from ..show.card import card, fields
        from ..show.words import number

        shown = ("total_norm", "clipped_norm", "limit", "coef", "removed", "cosine")
        pairs = [(name, number(float(getattr(self, name)))) for name in shown]
        pairs += [(name, "yes" if getattr(self, name) else "no") for name in ("clipped", "skipped")]
        norms = [float(norm) for norm in self.norms]
        largest = sorted(zip(norms, self.names, strict=True), key=_size, reverse=True)[:3]
        pairs += [("largest norms", ", ".join(f"{name} {number(norm)}" for norm, name in largest))]
        return card("ClipResult", fields([*pairs, ("ran", self.ran)]))


Make = Callable[[ClipResult], Mapping[str, Any]]


def later(found: ClipResult, ran: str, make: Make) -> ClipResult:
    """Return a result whose fields are made when somebody first looks: few steps are looked at.

    Args:
        found: a result in plain numbers; not mutated.
        ran: what did the work.
        make: from `found` to all fields but `names` and `ran`.
    """
    result = object.__new__(ClipResult)
    result.__dict__.update(names=found.names, ran=ran, _numbers=found, _make=make)
    return result


def put_off(make: Callable[[], ClipResult], **known: Any) -> ClipResult:
    """Return a result in plain numbers that is made when somebody looks at more than is known.

    Args:
        make: returns the whole result.
        **known: fields that each step needs.
    """
    result = object.__new__(ClipResult)
    result.__dict__.update(known, _make=lambda _: vars(make()))
    return result


def numbers(result: ClipResult) -> ClipResult:
    """Return a result in plain numbers, where it was made from them: to be read without tensors."""
    return result.__dict__.get("_numbers", result)


def said_to_run(result: ClipResult, ran: str) -> ClipResult:
    """Return the same result with another `ran`."""
    make = result.__dict__.get("_make")
    return replace(result, ran=ran) if make is None else later(numbers(result), ran, make)


def _size(pair: tuple[float, str]) -> float:
    """Return the norm for a comparison, in which a NaN is the largest."""
    return _INF if pair[0] != pair[0] else pair[0]


_INF = float("inf")

publish("gradclip", ("ClipResult",), globals())
