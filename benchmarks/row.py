"""One line of the table: our figure, the rival's, and the limit that their ratio must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .measure import Budget, Estimate, Times

__all__ = ["OWN", "QUIET", "Case", "Effort", "Figure", "Limit", "Row", "at_least", "at_most"]

QUIET = 0.5
"""A load above this value, before all cases, means that other processes use the machine."""
OWN = 2.0
"""What a benchmark itself may add to the load: the two threads of the case before."""

Unit = Literal["ns", "ns/element", "ns/tensor", "bytes", "relative"]


@dataclass(frozen=True)
class Figure:
    """A figure, and the name of its side."""

    name: str
    value: float
    unit: Unit = "ns"


@dataclass(frozen=True)
class Limit:
    """The limit that a row's value must keep."""

    kind: Literal["at most", "at least"]
    value: float

    def met(self, value: float) -> bool:
        """Whether the value keeps the limit; NaN never does."""
        return bool(value <= self.value if self.kind == "at most" else value >= self.value)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: what was measured.
        ours: our figure.
        rival: what it is compared with.
        value: the figure that the limit is for, with its interval.
        means: how `value` comes about, as in "rival ÷ ours".
        limit: from the project's targets; None if the row is only there to be seen.
        rounds: how many rounds the figures come from.
        note: what a reader must know.
        load: how many threads were ready to run in the minute before the case, those of the case
            before included; None if unknown.
    """

    case: str
    ours: Figure
    rival: Figure
    value: Estimate
    means: str
    limit: Limit | None
    rounds: int
    note: str = ""
    load: float | None = None

    @property
    def busy(self) -> bool:
        """Whether other processes used the machine, so that the figures are noisy."""
        return self.load is not None and self.load > QUIET + OWN

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None if there is none."""
        return None if self.limit is None else self.limit.met(self.value.value)

    @property
    def close(self) -> bool:
        """Whether the limit lies inside the interval: another run may decide otherwise."""
        return self.limit is not None and self.value.low < self.limit.value < self.value.high

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"met": self.met}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """Return the row that `to_dict` gave."""
        limit = data["limit"]
        return cls(
            case=data["case"],
            ours=Figure(**data["ours"]),
            rival=Figure(**data["rival"]),
            value=Estimate(**data["value"]),
            means=data["means"],
            limit=None if limit is None else Limit(**limit),
            rounds=data["rounds"],
            note=data["note"],
            load=data.get("load"),
        )


@dataclass(frozen=True)
class Effort:
    """The amount to measure: a full run, or a quick look."""

    quick: bool

    def budget(self, seconds: float = 5.0, *, least: int = 11, most: int = 400) -> Budget:
        """Return the budget of one comparison from its seconds in a full run."""
        if self.quick:
            return Budget(seconds / 6, min(least, 5), most, warmup=1)
        return Budget(seconds, least, most)


@dataclass(frozen=True)
class Case:
    """A measurement in its own process, which gives one row or more.

    Attributes:
        name: what `--only` looks at.
        run: measures.
        slow: left out of a quick run, unless `--only` names it.
    """

    name: str
    run: Callable[[Effort], list[Row]]
    slow: bool = False


def at_least(
    limit: float | None, case: str, times: Times, ours: str, *rivals: str, note: str = ""
) -> Row:
    """Return the row with the fastest rival's time over ours."""
    bound = None if limit is None else Limit("at least", limit)
    return _against(times.fastest(*rivals), bound, case, times, ours, note, faster=True)


def at_most(
    limit: float | None, case: str, times: Times, ours: str, *rivals: str, note: str = ""
) -> Row:
    """Return the row with our time over the fastest rival's."""
    bound = None if limit is None else Limit("at most", limit)
    return _against(times.fastest(*rivals), bound, case, times, ours, note, faster=False)


def _against(
    rival: str, limit: Limit | None, case: str, times: Times, ours: str, note: str, *, faster: bool
) -> Row:
    pair = (rival, ours) if faster else (ours, rival)
    return Row(
        case,
        Figure(ours, times.median(ours)),
        Figure(rival, times.median(rival)),
        times.ratio(*pair),
        "rival ÷ ours" if faster else "ours ÷ rival",
        limit,
        times.rounds,
        note,
    )
