"""The types of the rows of a record: the header, the optimizers, the events and the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .schema import Parameter

__all__ = ["Counters", "End", "Event", "Floats", "Header", "Norms", "Optimizer", "Samples"]

Floats: TypeAlias = NDArray[np.float64]
"""Numbers of many steps, one for each row."""


@dataclass(frozen=True)
class Header:
    """The first row: the command, its policy and the versions."""

    schema: int
    created: str | None = None
    gradclip: str | None = None
    policy: str | None = None
    command: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    """The script that `gradclip run` ran, with its arguments; ``-m`` stands before a module."""
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
    """An event of the run, with a sentence for the user."""

    name: str
    text: str
    step: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """The last row of a run that ended: its status and its counts of steps."""

    status: str
    steps: int | None = None
    clipped: int | None = None
    skipped: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Counters(NamedTuple):
    """Running counts at each step row: the steps up to and with this one."""

    clipped: NDArray[np.int64]
    """The number of steps whose gradient the policy changed."""
    skipped: NDArray[np.int64]
    """The number of skipped steps."""
    nonfinite: NDArray[np.int64]
    """The number of steps with inf or NaN in a gradient."""


class Norms(NamedTuple):
    """The gradient norm of each parameter at the sampled steps."""

    steps: NDArray[np.int64]
    """The step numbers, shape (sampled,)."""
    names: tuple[str, ...]
    """The parameter names, one for each column of the matrix."""
    matrix: Floats
    """The norms, shape (sampled, parameters). NaN is a NaN norm or an absent gradient;
    `Run.nonfinite` names only parameters with a non-finite norm."""


class Samples(NamedTuple):
    """The samples of one step with the largest gradient norms, the largest first."""

    of: int
    """The number of samples in the step, of all its micro-batches."""
    at: tuple[int, ...]
    """The places of the samples in the step, from 0."""
    norms: tuple[float, ...]
    """The norms of what the samples add to the gradient."""
    ids: tuple[int | str, ...] | None
    """The samples' places in the data set, or their names; None if the record does not tell."""
    median: float
    """The median of the norms of all samples of the step."""
    total: float
    """The root of the sum of all squared norms."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """The norms over the median, which no loss scale and no size of a batch changes."""
        return tuple(norm / self.median if self.median > 0 else float("nan") for norm in self.norms)
