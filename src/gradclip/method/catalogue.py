"""The catalogue of recipes: the name, the paper and the traits of every method.

A recipe is a function that returns a policy. `@recipe(...)` enters the function here and so gives
the method a text form (`norm:1.0`), a dictionary form and a line in `gradclip methods`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import zip_longest
from typing import Literal, TypeVar, cast

from ..checks import builtin
from ..errors import PolicyError
from ..show.words import cut_off
from .call import Call, text_name
from .policy import AnyPolicy, Chain, Policy, Wrapped, asked
from .table import Table
from .threshold.limit import Followed, followed
from .traits import Traits, traits_of

__all__ = ["CATALOGUE", "PURPOSES", "Group", "Purpose", "Recipe", "grouped", "lookup", "recipe"]

F = TypeVar("F", bound="Callable[..., Policy | Chain | Wrapped]")


@dataclass(frozen=True)
class Purpose:
    """A group of methods that serve one purpose.

    Attributes:
        heading: the name of the group.
        text: one or two sentences about the methods in the group.
    """

    heading: str
    text: str


Group = Literal[
    "fixed", "adaptive", "layer", "value", "spike", "small", "update", "sample", "wrapper"
]
PURPOSES: dict[Group, Purpose] = {
    "fixed": Purpose(
        "One fixed limit",
        "One number that you choose limits the norm of the whole gradient. Begin here.",
    ),
    "adaptive": Purpose(
        "A limit that adapts to the run",
        "The limit follows the norms of the steps so far, so that it fits a run whose norms drift.",
    ),
    "layer": Purpose(
        "A limit for each layer or unit",
        "Each tensor, matrix or output row has a limit of its own, so that one layer with a spike "
        "does not scale down the others.",
    ),
    "value": Purpose(
        "A limit for each value",
        "Each value of the gradient has a limit. The direction of the gradient changes.",
    ),
    "spike": Purpose(
        "Skip or smooth spikes",
        "A spike is one bad step, or one bad value. These methods leave the step out, or shrink "
        "the spike to the usual size.",
    ),
    "small": Purpose(
        "Lift small gradients",
        "These methods scale up a gradient that is too small. Clipping alone cannot help there.",
    ),
    "update": Purpose(
        "Limit the optimizer's update",
        "These methods limit the step that the optimizer takes, and not the gradient: use them "
        'with `attach(on="update")`.',
    ),
    "sample": Purpose(
        "For the gradient of each sample",
        "These methods come from differential privacy, where the gradient of each sample is "
        "clipped before the sum. They also work on a whole gradient.",
    ),
    "wrapper": Purpose(
        "Combine and wrap",
        "A wrapper clips something other than the gradient, by the policy that you give it. "
        "Without a wrapper, `a|b` applies two policies one after the other, and "
        "`embed.*=a;*=b` gives groups of parameters their own.",
    ),
}
"""The purposes of methods, in the order in which the docs and the command list them."""


class _Bare(str):
    """An annotation that a signature shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Recipe:
    """One row of the catalogue; it states only the facts that the policy does not contain.

    Attributes:
        name: the name in the text form of a policy.
        function: the recipe; a call returns a policy.
        purpose: the group in which the docs list the method, a key of `PURPOSES`.
        paper: the publication that the method comes from.
        sample: the arguments of a useful call.
        renamed: from the old names of arguments, which old records may hold, to the new names.
    """

    name: str
    function: Callable[..., Policy | Chain | Wrapped]
    purpose: Group
    paper: str
    sample: tuple[object, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def signature(self) -> str:
        """The call as a reader types it, with types and defaults."""
        found = inspect.signature(self.function)
        typed = [
            each.replace(annotation=_Bare(each.annotation)) for each in found.parameters.values()
        ]
        bare = found.replace(parameters=typed, return_annotation=_Bare(found.return_annotation))
        return f"gradclip.{self.function.__name__}{bare}"

    @property
    def arguments(self) -> list[str]:
        """The names of the recipe's arguments."""
        return list(inspect.signature(self.function).parameters)

    @property
    def policy(self) -> Policy | Chain | Wrapped:
        """The policy of the useful call."""
        return self.function(*self.sample)

    @property
    def example(self) -> str:
        """The useful call in text form."""
        return str(self.policy)

    @property
    def traits(self) -> Traits:
        """The traits of the policy that the useful call returns."""
        return traits_of(self.policy)

    def __call__(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Policy | Chain | Wrapped:
        """Return the policy of a call; a call with wrong arguments raises a PolicyError."""
        kwargs = _current(kwargs, self.renamed)
        try:
            inspect.signature(self.function).bind(*args, **kwargs)
        except TypeError as error:
            shown = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
            raise PolicyError(
                f"{self.name}({cut_off(shown)}) is not usable: {cut_off(str(error))}; "
                f"its arguments are {', '.join(self.arguments)}"
            ) from None
        return self.function(*args, **kwargs)


CATALOGUE: dict[str, Recipe] = {}


def recipe(
    *,
    purpose: Group,
    paper: str,
    sample: tuple[object, ...] = (),
    renamed: Mapping[str, str] | None = None,
    wraps: Callable[[object], AnyPolicy] | None = None,
) -> Callable[[F], F]:
    """Enter a function that returns a policy into the catalogue.

    The method's name in text is the function's own, without a leading `by_` or `with_`.

    Args:
        purpose: the group in which the docs list the method, a key of `PURPOSES`.
        paper: the publication that the method comes from.
        sample: the arguments of a useful call; empty if all arguments have defaults.
        renamed: from old names of arguments to the new names; both work in calls and in text.
        wraps: for a recipe whose first argument is a policy, the function that reads this
            argument, so that text is read before the call is noted; else None.

    Returns:
        The decorator; the function that it returns notes the call on the policy.

    Raises:
        PolicyError: the catalogue has a method of this name already, or there is no such purpose.
    """
    old_names = {} if renamed is None else renamed
    if purpose not in PURPOSES:
        raise PolicyError.of("purpose", purpose, f"give one of {', '.join(PURPOSES)}")

    def enter(function: F) -> F:
        name = text_name(function.__name__)
        if name in CATALOGUE:
            raise PolicyError.of("recipe", function.__name__, "the catalogue has this name already")
        annotations = {
            key: str(of.annotation) for key, of in inspect.signature(function).parameters.items()
        }
        kinds, first = list(annotations.values()), next(iter(annotations), None)

        @functools.wraps(function)
        def build(*args: object, **kwargs: object) -> Policy | Chain | Wrapped:
            args = tuple(
                _held(value, kind) for value, kind in zip_longest(args, kinds[: len(args)])
            )
            named = {
                key: _held(value, annotations.get(key))
                for key, value in _current(kwargs, old_names).items()
            }
            if wraps is not None and first in named and not args:
                args = (named.pop(first),)
            if wraps is not None and args:
                args = (wraps(args[0]), *args[1:])
            policy = function(*args, **named)
            return asked(policy, Call(function.__name__, args, tuple(named.items())))

        CATALOGUE[name] = Recipe(name, build, purpose, paper, sample, old_names)
        return cast("F", build)

    return enter


def _held(value: object, annotation: str | None) -> object:
    """Return an argument as the note of the call holds it: a limit that moves, or plain."""
    held = followed(value) if annotation is not None and "Limit" in annotation else value
    return held if isinstance(held, Followed) else _plain(value)


def grouped() -> dict[Group, list[Recipe]]:
    """Return all recipes by purpose; in a group the order is that of their modules."""
    rows = list(CATALOGUE.values())
    return {purpose: [row for row in rows if row.purpose == purpose] for purpose in PURPOSES}


def lookup(name: str) -> Recipe:
    """Return the recipe with this name in text.

    Args:
        name: the name in text. The name of the recipe's function works too, and `-` for `_`,
            because earlier versions wrote names so.

    Raises:
        PolicyError: no recipe has this name; the message has the most similar name, or all names.
    """
    plain = name.replace("-", "_")
    for row in CATALOGUE.values():
        if plain in (row.name, row.function.__name__):
            return row
    meant = _meant(plain)
    if meant is not None:
        remedy = f"did you mean {meant!r}? the methods are listed by `gradclip methods`"
        raise PolicyError.of("method", name, remedy)
    raise PolicyError.of("method", name, f"the methods are {', '.join(CATALOGUE)}")


def _meant(name: str) -> str | None:
    """Return the method whose name, or whose name in its paper, is the most similar."""
    known = {row.function.__name__: row.name for row in CATALOGUE.values()}
    for row in CATALOGUE.values():
        called = re.search(r"\((\S+?)\)\.$|\((\S+)'s", row.summary)
        if called is not None:
            known[(called[1] or called[2]).lower().replace("-", "")] = row.name
    known |= {name: name for name in CATALOGUE}
    for text in (name.lower(), name.lower().replace("_", "")):
        for found in get_close_matches(text, known, 1):
            return known[found]
    return None


def _plain(value: object) -> object:
    """Return Python's own number for a number, a tuple of them for several, else a table."""
    if isinstance(value, (tuple, list)) and not any(map(_is_many, value)):
        return tuple(map(builtin, value))
    if not _is_many(value):
        return builtin(value)
    try:
        return Table.of("argument", value)
    except PolicyError:
        return value  # The recipe refuses the value, and knows the argument's name.


def _is_many(value: object) -> bool:
    """Return whether a value is an array or a list, but not an array of no axes."""
    return isinstance(value, (tuple, list)) or bool(getattr(value, "shape", ()))


def _current(kwargs: Mapping[str, object], renamed: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments by their new names."""
    for old, new in renamed.items():
        if old in kwargs and new in kwargs:
            raise PolicyError.of(old, kwargs[old], f"it is the old name of {new}: give one of them")
    return {renamed.get(name, name): value for name, value in kwargs.items()}
