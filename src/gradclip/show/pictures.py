"""The pictures that a run offers, which packages above the record draw.

Those packages import the run, so the run cannot import them. `gradclip` itself, which knows all of
them, hands their functions over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

__all__ = ["Kind", "draw", "drawn_by"]

Kind: TypeAlias = Literal["card", "plot", "report"]

_DRAWN_BY: dict[Kind, Callable[..., Any]] = {}


def drawn_by(kind: Kind, function: Callable[..., Any]) -> None:
    """Have a function draw one kind of picture from now on; the run is its first argument."""
    _DRAWN_BY[kind] = function


def draw(kind: Kind, *args: object, **kwargs: object) -> Any:
    """Return the picture of this kind."""
    return _DRAWN_BY[kind](*args, **kwargs)
