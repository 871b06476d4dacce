"""Sources: the rules that choose the arrays which a wrapped policy clips.

A source computes from the gradient g an array x. The wrapped policy clips x to u. The source then
computes from u the output, which the optimizer gets. Both steps are plain arithmetic, with the same
lines for every array library. The arrays that a source remembers have the shapes of the gradients
and at least the precision of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._publish import publish
from ..arrays import State, Values
from ..checks import number

__all__ = ["Carry", "Center", "Difference", "Momentum", "Source"]


@dataclass(frozen=True)
class Carry:
    """Add the part that clipping cuts off to the gradient of the next step (error feedback).

    x = g + Δ, out = u, Δ ← x - u.

    Source: U-Clip, Elesedy & Hutter 2023, algorithm 1.
    """

    holds: ClassVar[tuple[str, ...]] = ("carry",)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Return the gradient plus the carried part, and the memory."""
        return g + state["carry"], state

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Return the clipped sum, and the memory with the part that this step cut off."""
        return u, {"carry": x - u}


@dataclass(frozen=True)
class Momentum:
    """Clip a momentum of the gradients; the memory keeps the momentum before clipping.

    m ← beta·m + (1-beta)·g, x = m, out = u.

    Args:
        beta: the weight of the old momentum, in [0, 1).

    Raises:
        PolicyError: beta is out of its range.
    """

    beta: float
    holds: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "beta", number("beta", self.beta, low=0, high=1, below=True))

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Average the gradient in."""
        m = self.beta * state["momentum"] + (1 - self.beta) * g
        return m, {"momentum": m}

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Return the clipped momentum, and the unchanged memory."""
        return u, state


@dataclass(frozen=True)
class Difference:
    """Clip the difference of a momentum and an estimate, and add it to the estimate.

    v ← (1-beta1)·v + beta1·g, x = v - e, e ← e + beta2·u, out = e.

    Args:
        beta1: the weight of the new gradient in the momentum, in (0, 1].
        beta2: the share of the clipped difference that is added to the estimate, in (0, 1].

    Raises:
        PolicyError: an argument is out of its range.

    Source: Clip21-SGD2M, arXiv:2502.11682.
    """

    beta1: float
    beta2: float
    holds: ClassVar[tuple[str, ...]] = ("momentum", "estimate")

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("beta1", "beta2"):
            value = number(name, getattr(self, name), low=0, high=1, above=True)
            object.__setattr__(self, name, value)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Return the momentum minus the estimate, and the memory with the new momentum."""
        v = (1 - self.beta1) * state["momentum"] + self.beta1 * g
        return v - state["estimate"], {**state, "momentum": v}

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Return the new estimate, and the memory with it."""
        e = state["estimate"] + self.beta2 * u
        return e, {**state, "estimate": e}


@dataclass(frozen=True)
class Center:
    """Clip the difference of the gradient and the last output (centered clipping).

    x = g - v, out = v + u, v ← out.

    Source: Karimireddy et al. 2021, section 4.
    """

    holds: ClassVar[tuple[str, ...]] = ("center",)

    def enter(self, g: Values, state: State) -> tuple[Values, State]:
        """Return the gradient minus the center, and the memory."""
        return g - state["center"], state

    def leave(self, x: Values, u: Values, state: State) -> tuple[Values, State]:  # noqa: ARG002
        """Return the new center, and the memory with it."""
        out = state["center"] + u
        return out, {"center": out}


Source = Carry | Momentum | Difference | Center

publish("gradclip.parts", __all__, globals())
