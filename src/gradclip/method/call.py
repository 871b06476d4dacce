"""How a policy was asked for: a recipe and its arguments, and the recipe's name in text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Call", "text_name"]


def text_name(function: str) -> str:
    """Return the name in text of the recipe whose function has this name.

    Example:
        >>> text_name("by_norm"), text_name("online_quantile")
        ('norm', 'online_quantile')
    """
    return function.removeprefix("by_").removeprefix("with_")


@dataclass(frozen=True)
class Call:
    """A call of a recipe: what the user wrote, with each text of a policy read.

    Attributes:
        function: the name of the recipe's function, such as "by_norm".
        args: the arguments by place: None, bools, numbers, words, policies, or tuples of these.
        kwargs: the arguments by name, in the user's order.
    """

    function: str
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()

    @property
    def recipe(self) -> str:
        """The recipe's name in text, such as "norm"."""
        return text_name(self.function)
