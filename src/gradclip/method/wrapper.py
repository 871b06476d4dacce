"""Sources: what a wrapped policy clips instead of the gradient.

A source turns the gradient g into the x that the wrapped policy clips to u, and u into what the
optimizer gets. Both are plain arithmetic, the same lines for every array library. The arrays that a
source remembers have the shape of the gradients, in at least float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import State, Values
from ..checks import number

__all__ = ["Carry", "Center", "Difference", "Momentum", "Source"]


@dataclass(frozen=True)
class Carry:
    """U-Clip's error feedback: carry into the next step what this step cut off.

    x = g + Δ, out = u, Δ ← x - u.
    """

    holds: ClassVar[tuple[str, ...]] = ("carry",)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Add what earlier steps cut off."""
        return g + state["carry"], state

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Keep what this step cut off."""
        return u, {"carry": x - u}


@dataclass(frozen=True)
class Momentum:
    """Clip the momentum instead of the gradient; the memory keeps the momentum unclipped.

    m ← beta·m + (1-beta)·g, x = m, out = u.

    Args:
        beta: the weight of the old momentum, in [0, 1).

    Raises:
        PolicyError: beta is out of its range.
    """

    beta: float
    holds: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "beta", number("beta", self.beta, low=0, high=1, below=True))

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Average the gradient in."""
        m = self.beta * state["momentum"] + (1 - self.beta) * g
        return m, {"momentum": m}

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Hand the clipped momentum on."""
        return u, state


@dataclass(frozen=True)
class Difference:
    """Clip21-SGD2M: clip the distance of a momentum from an estimate, and move the estimate.

    v ← (1-beta1)·v + beta1·g, x = v - e, e ← e + beta2·u, out = e.

    Args:
        beta1: the weight of the new gradient in the momentum, in (0, 1].
        beta2: the share of the clipped distance by which the estimate moves, in (0, 1].

    Raises:
        PolicyError: an argument is out of its range.
    """

    beta1: float
    beta2: float
    holds: ClassVar[tuple[str, ...]] = ("momentum", "estimate")

    def __post_init__(self) -> None:
        """Refuse early."""
        for name in ("beta1", "beta2"):
            value = number(name, getattr(self, name), low=0, high=1, above=True)
            object.__setattr__(self, name, value)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Take the momentum's distance from the estimate."""
        v = (1 - self.beta1) * state["momentum"] + self.beta1 * g
        return v - state["estimate"], {**state, "momentum": v}

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Move the estimate by the clipped distance."""
        e = state["estimate"] + self.beta2 * u
        return e, {**state, "estimate": e}


@dataclass(frozen=True)
class Center:
    """Centered clipping: clip the gradient's distance from the last output.

    x = g - v, out = v + u, v ← out.
    """

    holds: ClassVar[tuple[str, ...]] = ("center",)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Take the gradient's distance from the center."""
        return g - state["center"], state

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Move the center by the clipped distance."""
        out = state["center"] + u
        return out, {"center": out}


Source = Carry | Momentum | Difference | Center
