"""The rows of a record, typed: the header, the optimizers, the events, the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .schema import Parameter

__all__ = ["Counters", "End", "Event", "Floats", "Header", "Norms", "Optimizer"]

Floats: TypeAlias = NDArray[np.float64]
"""Numbers of many steps, one a row."""


@dataclass(frozen=True)
class Header:
    """The first row: the command, its policy and the versions."""

    schema: int
    created: str | None = None
    gradclip: str | None = None
    policy: str | None = None
    command: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """One optimizer of the run, and its parameters in the order of `Run.norms`."""

    id: int
    class_name: str
    policy: str | None = None
    parameters: tuple[Parameter, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An event worth knowing."""

    name: str
    text: str
    step: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """The last row of a run that ended: its own counts and how it ended."""

    status: str
    steps: int | None = None
    clipped: int | None = None
    skipped: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Counters(NamedTuple):
    """Running counts, one a row: of the steps so far, this one included."""

    clipped: NDArray[np.int64]
    """How many the policy changed."""
    skipped: NDArray[np.int64]
    """How many were kept from the weights."""
    nonfinite: NDArray[np.int64]
    """How many had a gradient with inf or NaN."""


class Norms(NamedTuple):
    """Per-parameter gradient norms of the sampled steps."""

    steps: NDArray[np.int64]
    """Step numbers, shape (sampled,)."""
    names: tuple[str, ...]
    """Parameter names, one a column."""
    matrix: Floats
    """Norms, shape (sampled, parameters); NaN where the norm was NaN or the gradient absent
    (`Run.nonfinite` holds the former only)."""
