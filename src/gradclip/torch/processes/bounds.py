"""Bounds that are arrays, and parameters of which each process has a part."""

from __future__ import annotations

from ...errors import PolicyError
from ...method.plan import Plan, WrappedStage
from ...method.table import tables
from .layout import Layout

__all__ = ["refuse_divided_bounds"]


def refuse_divided_bounds(layers: Plan, layout: Layout) -> None:
    """Refuse a bound that is an array for a parameter that is spread over processes.

    Each process would compare its own part with the bounds of the whole. Every process knows of all
    parameters, so all of them refuse.

    Raises:
        PolicyError: names the parameter.
    """
    for stage in (stage for layer in layers for stage in layer):
        if isinstance(stage, WrappedStage):
            refuse_divided_bounds(stage.inner, layout)
        elif any(tables(stage.policy.threshold)):
            spread = [m for m in stage.members if layout.pieces[m].sum_groups]
            for piece in (layout.pieces[m] for m in spread):
                remedy = (
                    "an array of bounds needs the whole gradient, and this one is spread over "
                    "processes: give the parameter one number, or a policy of its own, by name"
                )
                raise PolicyError.of(f"parameter {piece.name}", str(stage.policy), remedy)
