"""One call of a module: what it was given, and the gradients of what it returned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

__all__ = ["Call", "tensors_in"]


def tensors_in(tree: object) -> list[Tensor]:
    """Return the tensors in a tree of tuples, lists and dictionaries."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        args: what the module was called with, detached.
        kwargs: likewise, by name.
        grads: the gradient of each tensor in the output; None where none came.
        random: the state of the random numbers before the call, if the module draws some.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grads: list[Tensor | None]
    random: Tensor | None = None

    @property
    def first(self) -> Tensor | None:
        """The first tensor that the module was called with."""
        return next(iter(tensors_in((self.args, self.kwargs))), None)
