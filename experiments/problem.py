"""The interface of a task and the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A model and its data.

    Attributes:
        model: trained in place.
        loss: returns the loss of the next batch.
        evaluate: returns figures by name, "loss" among them, on data that is the same each time.
        trivial: the loss of the best constant prediction; a run that ends above it learnt nothing.
        solved: whether the figures of an evaluation count as success; None where there is no
            such thing.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    evaluate: Callable[[], dict[str, float]]
    trivial: float
    solved: Callable[[dict[str, float]], bool] | None = None
