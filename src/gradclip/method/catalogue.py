"""The catalogue of recipes: every method's name, and how a call of it is written down.

A recipe is a function that returns a policy. `@recipe(...)` enters the function here, which gives
the method a text form (`norm:1.0`), a dictionary form and a line in `gradclip methods`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from ..errors import PolicyError

if TYPE_CHECKING:
    import numpy as np

    from .policy import Chain, Policy, Wrapped

__all__ = ["CATALOGUE", "KINDS", "Call", "Kind", "Recipe", "lookup", "recipe", "text_name"]

F = TypeVar("F", bound="Callable[..., Policy | Chain | Wrapped]")


@dataclass(frozen=True)
class Call:
    """How a policy was asked for: a recipe's name and its arguments as the user gave them."""

    recipe: str
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()

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

    def _split(self) -> tuple[object, tuple[object, ...]]:
        """Return the policy that is wrapped, if the first argument is one, and the others."""
        wraps = bool(self.args) and not isinstance(self.args[0], (str, int, float, type(None)))
        return (self.args[0], self.args[1:]) if wraps else (None, self.args)


Kind = Literal["fixed", "following", "moment", "skip", "update", "wrapper"]
KINDS: dict[Kind, str] = {
    "fixed": "Fixed limits",
    "following": "Limits that follow the norms",
    "moment": "Single values and moments",
    "skip": "Whole steps",
    "update": "Updates instead of gradients",
    "wrapper": "Wrappers",
}
"""The kinds of methods with their headings, in the order in which the docs list them."""


@dataclass(frozen=True)
class Recipe:
    """One row of the catalogue.

    A row holds only what nobody can compute. What a method looks at, remembers and may do follows
    from the policy of its example: `gradclip.method.traits`.

    Attributes:
        name: the name in the text form of a policy.
        function: the recipe; a call returns a policy.
        kind: the group in which the docs list the method.
        paper: who published the method.
        example: a call in text form.
        renamed: old names of arguments, which old records may hold, with the new names.
    """

    name: str
    function: Callable[..., Policy | Chain | Wrapped]
    kind: Kind
    paper: str
    example: str
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def signature(self) -> str:
        """The call as a reader types it, with types and defaults."""
        return f"gradclip.{self.function.__name__}{inspect.signature(self.function)}"

    @property
    def arguments(self) -> list[str]:
        """The names that a call may use."""
        return list(inspect.signature(self.function).parameters)

    def __call__(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Policy | Chain | Wrapped:
        """Build the policy, turning a wrong call into a PolicyError."""
        kwargs = _current(kwargs, self.renamed)
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
    *, kind: Kind, paper: str, example: str = "", renamed: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Enter a function that returns a policy into the catalogue.

    The method's name in text is the function's own, without a leading `by_` or `with_`.

    Args:
        kind: the group in which the docs list the method, a key of `KINDS`.
        paper: who published the method.
        example: the arguments of a useful call in text form, as in "1.0", or "(norm:1.0)" for a
            wrapper; empty if the bare name is a useful call.
        renamed: old names of arguments with their new names; both work in calls and in text.

    Raises:
        PolicyError: the catalogue has a method of this name already.
    """
    old_names = {} if renamed is None else renamed

    def enter(function: F) -> F:
        name = text_name(function.__name__)
        if name in CATALOGUE:
            raise PolicyError.of("recipe", function.__name__, "the catalogue has this name already")

        @functools.wraps(function)
        def build(*args: object, **kwargs: object) -> Policy | Chain | Wrapped:
            args = tuple(map(_unboxed, args))
            named = {key: _unboxed(value) for key, value in kwargs.items()}
            named = _current(named, old_names)
            policy = function(*args, **named)
            return replace(policy, call=Call(name, args, tuple(named.items())))

        call = f"{name}{'' if example.startswith('(') or not example else ':'}{example}"
        CATALOGUE[name] = Recipe(name, build, kind, paper, call, old_names)
        return cast(F, build)

    return enter


def text_name(name: str) -> str:
    """Return the name in the text form: no leading `by_` or `with_`, and '_' for '-'.

    Example:
        >>> text_name("by_norm"), text_name("online-quantile")
        ('norm', 'online_quantile')
    """
    return name.replace("-", "_").removeprefix("by_").removeprefix("with_")


def lookup(name: str) -> Recipe:
    """Return the recipe called `name`, or say which names there are.

    A recipe is found by the name of its function and by old names with '-' too.

    Raises:
        PolicyError: no recipe has this name.
    """
    found = CATALOGUE.get(text_name(name))
    if found is None:
        close = get_close_matches(name, CATALOGUE, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise PolicyError.of("method", name, f"{meant}the methods are {', '.join(CATALOGUE)}")
    return found


def _current(kwargs: Mapping[str, object], renamed: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments under the names that they have today."""
    for old, new in renamed.items():
        if old in kwargs and new in kwargs:
            raise PolicyError.of(old, kwargs[old], f"it is the old name of {new}: give one of them")
    return {renamed.get(name, name): value for name, value in kwargs.items()}


def _unboxed(value: object) -> object:
    """Return a number of NumPy's as Python's, which can be written down."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return cast("np.generic", value).item()
    return value


def _literal(value: object) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _python(value: object) -> str:
    return f"float({str(value)!r})" if value in (float("inf"), float("-inf")) else repr(value)
