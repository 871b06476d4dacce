"""The catalogue of recipes: every method's name, and how a call of it is written down.

A recipe is a function that returns a policy. `@recipe("norm")` enters it here, which gives it
a text form (`norm:1.0`), a dictionary form and a line in `gradclip methods`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from ..checks import builtin
from ..errors import PolicyError
from .call import Call, text_name
from .policy import AnyPolicy, Chain, Policy, Wrapped, asked

__all__ = ["CATALOGUE", "Recipe", "lookup", "recipe"]

F = TypeVar("F", bound="Callable[..., Policy | Chain | Wrapped]")


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


def recipe(
    name: str,  # noqa: ARG001
    *,
    paper: str,
    example: str | None = None,
    wraps: Callable[[object], AnyPolicy] | None = None,
) -> Callable[[F], F]:
    """Enter a function that returns a policy into the catalogue.

    Args:
        name: not used: the name in text is the function's, without `by_` or `with_`.
        paper: who published it.
        example: a call of it in text form; by default the bare name, if that is enough.
        wraps: for a recipe whose first argument is a policy: what reads that argument, so that
            text is read before the call is noted.
    """

    def enter(function: F) -> F:
        name = text_name(function.__name__)
        first = next(iter(inspect.signature(function).parameters), None)

        @functools.wraps(function)
        def build(*args: Any, **kwargs: Any) -> Policy | Chain | Wrapped:
            args = tuple(map(builtin, args))
            kwargs = {key: builtin(value) for key, value in kwargs.items()}
            if wraps is not None and first in kwargs:
                args = (kwargs.pop(first), *args)
            if wraps is not None and args:
                args = (wraps(args[0]), *args[1:])
            policy = function(*args, **kwargs)
            return asked(policy, Call(function.__name__, args, tuple(kwargs.items())))

        CATALOGUE[name] = Recipe(name, build, paper, example or name)
        return build  # type: ignore[return-value]

    return enter


def lookup(name: str) -> Recipe:
    """Return the recipe of this name in text, or say which names there are.

    The name of the recipe's function is read too, and `-` for `_`, as earlier versions wrote.
    """
    plain = name.replace("-", "_")
    for row in CATALOGUE.values():
        if plain in (row.name, row.function.__name__):
            return row
    close = get_close_matches(plain, CATALOGUE, 1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    raise PolicyError.of("method", name, f"{meant}the methods are {', '.join(CATALOGUE)}")
