"""What a clipped optimizer asks of its backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ...arrays import Values
from ...engine.run import NonFinite
from ...errors import PolicyError
from ...method.plan import plan
from ...method.policy import AnyPolicy

__all__ = ["NUMBERS", "Optimizer", "Settings", "Side", "Store", "Variable"]
__all__ += ["refuse_other_rules", "unique_names"]

Optimizer: TypeAlias = Any
"""A Keras optimizer."""
Variable: TypeAlias = Any
"""A variable of Keras or of TensorFlow."""
Store: TypeAlias = Any
"""Where Keras saves the arrays of one object: a mapping from text to NumPy arrays."""

NUMBERS = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
"""The numbers of a step, by their names in `ClipResult`."""


@dataclass(frozen=True)
class Settings:
    """How an optimizer is clipped.

    Attributes:
        policy: the policy.
        nonfinite: see `clipped`.
        max_skips: see `clipped`.
    """

    policy: AnyPolicy
    nonfinite: NonFinite
    max_skips: int


class Side(Protocol):
    """The clipping of one optimizer on one backend.

    Attributes:
        names: the names of the variables, in the order of `norms`.
        present: the places of the variables whose gradients come next, in the order in which the
            optimizer was built with them.
    """

    names: Sequence[str]
    present: Sequence[int]

    def clip(self, grads: Sequence[Values]) -> list[Values]:
        """Return the clipped gradients of the variables that are present."""
        ...

    def step(self, apply: Callable[[], None]) -> None:
        """Let the optimizer apply gradients, and leave all as it was if the step is skipped."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Return the numbers of steps, clipped steps and skipped steps."""
        ...

    def last(self) -> Mapping[str, float] | None:
        """Return the `NUMBERS` of the last step with clipped and skipped; None before a step."""
        ...

    def norms(self) -> list[float]:
        """Return the norm of each gradient at the last step."""
        ...

    def variables(self) -> Mapping[str, Variable]:
        """Return the variables by their names, in the order of `names`."""
        ...

    def save(self, store: Store) -> None:
        """Save what the variables of the optimizer do not hold."""
        ...

    def load(self, store: Store) -> None:
        """Go on from what `save` saved."""
        ...


def unique_names(variables: Sequence[Variable]) -> list[str]:
    """Return the path of each variable; a path that was there before gets a number."""
    found: list[str] = []
    for variable in variables:
        path = getattr(variable, "path", variable.name)
        again = sum(name == path or name.startswith(f"{path}#") for name in found)
        found.append(f"{path}#{again + 1}" if again else path)
    return found


def refuse_other_rules(policy: AnyPolicy, saved: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a memory whose variables fell under other rules: paths differ from model to model.

    Raises:
        PolicyError: the number of variables, or a variable's rule, is another one now.
    """
    if len(saved) != len(names):
        raise PolicyError.of("names", list(saved), f"the variables are {list(names)} now")
    if plan(policy, saved) != plan(policy, names):
        remedy = (
            f"the variables are called {list(names)} now, and other rules hold for them: Keras "
            "puts a model's name before a path or not, so begin each pattern with *"
        )
        raise PolicyError.of("names", list(saved), remedy)
