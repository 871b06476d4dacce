"""The call of a recipe that made a policy, with the recipe's name in text."""

from __future__ import annotations

from dataclasses import dataclass

from .written import Written, as_code, as_data, as_text, can_be_written, joined

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
    """A call of a recipe as the user wrote it, with a policy in place of each policy's text.

    Attributes:
        function: the name of the recipe's function, such as "by_norm".
        args: the positional arguments: None, booleans, numbers, words, policies, or tuples of
            these.
        kwargs: the keyword arguments, in the user's order.
    """

    function: str
    args: tuple[object, ...] = ()
    kwargs: tuple[tuple[str, object], ...] = ()

    @property
    def recipe(self) -> str:
        """The recipe's name in text, such as "norm"."""
        return text_name(self.function)

    @property
    def can_be_written(self) -> bool:
        """Whether the written forms can hold each argument."""
        values = (*self.args, *(value for _, value in self.kwargs))
        # The data uses these two keys beside the arguments.
        clash = {"method", "args"} & {name for name, _ in self.kwargs}
        return not clash and all(map(can_be_written, values))

    def data(self) -> dict[str, object]:
        """Return the call as plain data, as in `{"method": "norm", "args": [1.0]}`."""
        args = {"args": [as_data(value) for value in self.args]} if self.args else {}
        named = {key: as_data(value) for key, value in self.kwargs}
        return {"method": self.recipe, **args, **named}

    def text(self) -> str | None:
        """Return the call as text, as in `norm:1.0,order=inf`, or None if text cannot hold it."""
        first = self.args[0] if self.args else None
        inner = first.text() if isinstance(first, Written) else None
        args = self.args if inner is None else self.args[1:]
        parts = [as_text(value) for value in args]
        parts += [(text := as_text(value)) and f"{key}={text}" for key, value in self.kwargs]
        values = joined(",", parts)
        if values is None:
            return None
        head = f"{self.recipe}:{values}" if parts else self.recipe
        return head if inner is None else f"{head}({inner})"

    def code(self) -> str:
        """Return the call as Python, as in `by_norm(1.0, order=float('inf'))`."""
        parts = [as_code(value) for value in self.args]
        parts += [f"{key}={as_code(value)}" for key, value in self.kwargs]
        return f"{self.function}({', '.join(parts)})"
