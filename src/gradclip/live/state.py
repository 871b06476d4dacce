"""The state of a live view: the counts and curves of the whole run, and its latest rows."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..diagnosis import Finding, diagnose
from ..record import End, Event, Header, Run, Trace, traces_of
from ..record.follow import Follower
from ..record.rows import Floats
from .series import Series

__all__ = ["RECENT", "LayerNews", "LiveOptimizer", "LiveRun"]

RECENT = 100
"""The number of steps in the recent clip rate."""

EVENTS = 100
"""The number of latest events that a live run keeps."""

SAMPLES = 20
"""The number of sampled steps at each end of the window; their medians give a layer's growth."""

MOST_NONFINITE = 1000
"""The largest number of parameters whose non-finite steps a live run counts."""


@dataclass(frozen=True)
class LayerNews:
    """The layers that need attention, the worst first."""

    largest: tuple[tuple[str, float], ...] = ()
    """The name and the latest norm of each layer."""
    growing: tuple[tuple[str, float], ...] = ()
    """The name of each layer, and the ratio of its norm at the window's end to its start."""
    over: int = 0
    """The number of steps in the window."""


@dataclass
class LiveOptimizer:
    """The counts and curves of one optimizer so far."""

    id: int
    class_name: str = ""
    policy: str | None = None
    steps: int = 0
    clipped: int = 0
    skipped: int = 0
    nonfinite: int = 0
    last_skipped: int | None = None
    first_step: int | None = None
    last: dict[str, float | None] = field(default_factory=dict)
    """The numbers of the latest step; None is an unknown number."""
    loss: Series = field(default_factory=lambda: Series("mean"))
    norm: Series = field(default_factory=lambda: Series("max"))
    limit: Series = field(default_factory=lambda: Series("mean"))
    nonfinite_layers: Counter[str] = field(default_factory=Counter)
    """The number of steps with a non-finite gradient, for each parameter."""
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Whether each of the latest steps was clipped."""

    @property
    def clip_rate(self) -> float | None:
        """The share of all steps that were clipped."""
        return self.clipped / self.steps if self.steps else None

    @property
    def recent_clip_rate(self) -> float | None:
        """The share of the latest `RECENT` steps that were clipped."""
        return sum(self.recent) / len(self.recent) if self.recent else None

    def take(self, trace: Trace) -> None:
        """Add the new steps of a trace."""
        steps = trace.steps
        clipped, skipped = trace.marked("clipped"), trace.marked("skipped")
        if self.first_step is None and len(steps):
            self.first_step = int(steps[0])
        self.steps += len(steps)
        self.clipped += int(clipped.sum())
        self.skipped += int(skipped.sum())
        self.nonfinite += int(trace.nonfinite.sum())
        if skipped.any():
            self.last_skipped = int(steps[skipped][-1])
        self.recent.extend(clipped[-RECENT:].tolist())
        for name, series in (("loss", self.loss), ("norm", self.norm), ("limit", self.limit)):
            series.extend(_with_inf(trace, name))
        for _, names in trace.nonfinite_names:
            for name in names:
                if name in self.nonfinite_layers or len(self.nonfinite_layers) < MOST_NONFINITE:
                    self.nonfinite_layers[name] += 1
        self.last = {
            name: float(trace.column(name)[-1]) if trace.seen(name)[-1] else None
            for name in ("step", "time", "loss", "lr", "norm", "clipped_norm", "limit", "coef")
        }


def _with_inf(trace: Trace, name: str) -> Floats:
    """Return a column with inf for each non-finite value and NaN for each absent value."""
    values = trace.column(name)
    return np.where(trace.seen(name) & ~np.isfinite(values), np.inf, values)


class LiveRun:
    """A run that is followed; its memory and the cost of a refresh do not grow with the record.

    Args:
        path: the record, which need not exist yet.

    Example:
        >>> import tempfile
        >>> from gradclip.record import RecordWriter
        >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> live = LiveRun(path)
        >>> with RecordWriter(path) as record:
        ...     for step in range(1, 5):
        ...         record.step(step=step, norm=2.0, clipped=step > 2)
        >>> live.refresh()
        False
        >>> live.state, live.optimizers[0].steps, live.optimizers[0].clip_rate
        ('ended', 4, 0.5)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarts: int = 0
        """The number of times that another run replaced the file."""
        self.age: float = 0.0
        """The seconds since the last write to the file."""
        self.missing: bool = True
        self._follower = Follower(path)
        self._forget()

    def _forget(self) -> None:
        self.header: Header | None = None
        self.end: End | None = None
        self.optimizers: dict[int, LiveOptimizer] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.event_count: int = 0
        self.findings: dict[tuple[int, str], Finding] = {}
        """The latest finding of each optimizer and kind, in the order of their arrival."""
        self.current: set[tuple[int, str]] = set()
        """The keys of the findings that the window still shows."""
        self.window: Run | None = None

    def refresh(self) -> bool:
        """Read the rows that were added to the record.

        Returns:
            Whether the file has more rows that are not read yet.

        Raises:
            RecordError: the file is not a record, or is damaged.
        """
        news = self._follower.read_added()
        self.missing, self.age = news.missing, news.age
        if news.restarted:
            self._forget()
            self.restarts += 1
        if news.run is not None:
            self._take(news.run)
        return news.behind > 0

    def study(self) -> None:
        """Update the window and the findings, at a cost that depends only on the window."""
        self.window = self._follower.window()
        if self.window is None:
            return
        whole = len(self.window.steps) == sum(each.steps for each in self.optimizers.values())
        # The rule for a plateau needs the whole run, which the window may not hold.
        seen = [found for found in diagnose(self.window) if whole or found.kind != "plateau"]
        self.findings |= {(found.optimizer, found.kind): found for found in seen}
        self.current = {(found.optimizer, found.kind) for found in seen}

    @property
    def state(self) -> str:
        """The state: "waiting" (no file, or no whole first line), "running" or "ended"."""
        if self.end is not None:
            return "ended"
        return "waiting" if self.header is None else "running"

    @property
    def step(self) -> int | None:
        """The latest step of any optimizer."""
        steps = [each.last.get("step") for each in self.optimizers.values()]
        return max((int(step) for step in steps if step is not None), default=None)

    @property
    def speed(self) -> float | None:
        """The number of steps per second over the window; None if it is unknown."""
        if self.window is None:
            return None
        for trace in traces_of([self.window])[:1]:
            time, steps = trace.column("time"), trace.steps
            if len(steps) > 1 and np.isfinite(time[[0, -1]]).all() and time[-1] > time[0]:
                return float((steps[-1] - steps[0]) / (time[-1] - time[0]))
        return None

    def layers(self, optimizer: int, most: int = 5) -> LayerNews:
        """Return the layers with the largest and the fastest growing norms in the window.

        Args:
            optimizer: the id of the optimizer.
            most: the largest number of layers in each list.
        """
        if self.window is None:
            return LayerNews()
        trace = Trace("", self.window, optimizer)
        steps, names, matrix = trace.norms
        if not matrix.size:
            return LayerNews()
        latest = np.nan_to_num(matrix[-1], nan=-1.0, posinf=np.inf)
        order = np.argsort(-latest, kind="stable")[:most]
        largest = tuple((names[i], float(latest[i])) for i in order if latest[i] >= 0)
        samples = min(SAMPLES, len(steps) // 2)
        if not samples:
            return LayerNews(largest)
        before, after = _middle(matrix[:samples]), _middle(matrix[-samples:])
        with np.errstate(all="ignore"):
            ratio = np.where((before > 0) & np.isfinite(after), after / before, np.nan)
        order = np.argsort(-np.nan_to_num(ratio, nan=-1.0), kind="stable")[:most]
        growing = tuple((names[i], float(ratio[i])) for i in order if ratio[i] > 1)
        return LayerNews(largest, growing, int(steps[-1] - steps[0]))

    def _take(self, run: Run) -> None:
        self.header = run.header
        self.end = run.end or self.end
        self.events.extend(run.events)
        self.event_count += len(run.events)
        for described in run.optimizers:
            known = self.optimizers.setdefault(described.id, LiveOptimizer(described.id))
            known.class_name = described.class_name
            known.policy = described.policy or run.header.policy
        for trace in traces_of([run]):
            if len(trace.steps):
                known = self.optimizers.setdefault(trace.optimizer, LiveOptimizer(trace.optimizer))
                known.policy = trace.policy
                known.take(trace)


def _middle(rows: Floats) -> Floats:
    """Return the median of each column's finite values, or NaN for a column without any."""
    kept = np.where(np.isfinite(rows), rows, np.nan)
    some = ~np.isnan(kept).all(axis=0)
    found = np.full(rows.shape[1], np.nan)
    found[some] = np.nanmedian(kept[:, some], axis=0)
    return found
