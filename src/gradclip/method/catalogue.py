"""The catalogue of recipes: every method's name, and how a call of it is written down.

A recipe is a function that returns a policy. `@recipe("norm")` enters it here, which gives it
a text form (`norm:1.0`), a dictionary form and a line in `gradclip methods`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import PolicyError

if TYPE_CHECKING:
    from .policy import Chain, Policy, Wrapped

__all__ = ["CATALOGUE", "Call", "Recipe", "lookup", "recipe"]

F = TypeVar("F", bound="Callable[..., Policy | Chain | Wrapped]")


@dataclass(frozen=True)
class Call:
    """How a policy was asked for: a recipe's name and its arguments as the user gave them."""

    recipe: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def text(self) -> str:
        """Return the text form, as in `norm:1.0,order=inf` or `clip21:beta1=0.5(norm:1.0)`."""
        inner, args = self._split()
        parts = [_literal(value) for value in args]
        parts += [f"{key}={_literal(value)}" for key, value in self.kwargs]
        head = f"{self.recipe}:{','.join(parts)}" if parts else self.recipe
        return head if inner is None else f"{head}({inner})"

    def code(self) -> str:
        """Return the Python form, as in `by_norm(1.0, order=inf)`."""
        parts = [_python(value) for value in self.args]
        parts += [f"{key}={_python(value)}" for key, value in self.kwargs]
        return f"{CATALOGUE[self.recipe].function.__name__}({', '.join(parts)})"

    def _split(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the policy that is wrapped, if the first argument is one, and the others."""
        wraps = bool(self.args) and not isinstance(self.args[0], (str, int, float, type(None)))
        return (self.args[0], self.args[1:]) if wraps else (None, self.args)


@dataclass(frozen=True)
class Recipe:
    """One row of the catalogue."""

    name: str
    function: Callable[..., Policy | Chain | Wrapped]
    paper: str
    example: str

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def arguments(self) -> list[str]:
        """The names that a call may use."""
        return list(inspect.signature(self.function).parameters)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Policy | Chain | Wrapped:
        """Build the policy, turning a wrong call into a PolicyError."""
        try:
            inspect.signature(self.function).bind(*args, **kwargs)
        except TypeError as error:
            shown = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
            raise PolicyError(
                f"{self.name}({shown}) is not usable: {error}; "
                f"its arguments are {', '.join(self.arguments)}"
            ) from None
        return self.function(*args, **kwargs)


CATALOGUE: dict[str, Recipe] = {}


def recipe(name: str, *, paper: str, example: str | None = None) -> Callable[[F], F]:
    """Enter a function that returns a policy into the catalogue under `name`.

    Args:
        name: what the text form calls it.
        paper: who published it.
        example: a call of it in text form; by default the bare name, if that is enough.
    """

    def enter(function: F) -> F:
        @functools.wraps(function)
        def build(*args: Any, **kwargs: Any) -> Policy | Chain | Wrapped:
            args = tuple(map(_unboxed, args))
            kwargs = {key: _unboxed(value) for key, value in kwargs.items()}
            policy = function(*args, **kwargs)
            return replace(policy, call=Call(name, args, tuple(kwargs.items())))

        CATALOGUE[name] = Recipe(name, build, paper, example or name)
        return build  # type: ignore[return-value]

    return enter


def lookup(name: str) -> Recipe:
    """Return the recipe called `name`, or say which names there are."""
    if name not in CATALOGUE:
        close = get_close_matches(name, CATALOGUE, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise PolicyError.of("method", name, f"{meant}the methods are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _unboxed(value: Any) -> Any:
    """Return a number of NumPy's as Python's, which can be written down."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def _literal(value: Any) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _python(value: Any) -> str:
    return f"float({str(value)!r})" if value in (float("inf"), float("-inf")) else repr(value)
