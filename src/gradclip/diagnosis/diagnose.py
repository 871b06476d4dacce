"""Run every detector on a record and sort the findings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..record import Run, Trace, traces_of
from .ending import find_ending
from .exploding import find_exploding, find_exploding_depth
from .finding import SEVERITIES, Finding
from .found import find_found_limit
from .nonfinite import find_nonfinite, find_skipped
from .piles import find_double_clipping
from .plateau import find_plateau
from .samples import find_recurring_samples, find_spike_samples
from .spikes import find_spikes
from .thresholds import find_thresholds
from .unscaled import find_clip_before_unscale
from .vanishing import find_dead_layers, find_vanished, find_vanishing

__all__ = ["diagnose", "diagnose_trace"]

_DETECTORS: tuple[Callable[[Trace], list[Finding]], ...] = (
    find_exploding,
    find_exploding_depth,
    find_vanishing,
    find_vanished,
    find_dead_layers,
    find_nonfinite,
    find_clip_before_unscale,
    find_double_clipping,
    find_thresholds,
    find_found_limit,
    find_spikes,
    find_spike_samples,
    find_recurring_samples,
    find_skipped,
    find_plateau,
)


def diagnose(run: Run) -> tuple[Finding, ...]:
    """Return the faults that a record shows, and notes about the run.

    Each rule compares values with the median and the median deviation of the same run. The
    thresholds of a rule are named constants in the rule's module.

    Args:
        run: a run from `gradclip.read_run`, finished or not; not mutated.

    Returns:
        The findings, the worst first, then by step. For a healthy run the tuple is empty or holds
        only notes.

    Example:
        >>> import tempfile
        >>> from gradclip import diagnose, read_run
        >>> from gradclip.record import RecordWriter
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with RecordWriter(path) as record:
        ...     record.optimizer("SGD", [("a", (1,), "float32"), ("b", (1,), "float32")])
        ...     for step in range(1, 10):
        ...         bad = ["b"] if step == 7 else []
        ...         record.step(step=step, norm=float("nan") if bad else 1.0, nonfinite=bad)
        0
        >>> [(finding.kind, finding.step) for finding in diagnose(read_run(path))]
        [('non-finite', 7)]
        >>> diagnose(read_run(path))[0].evidence["source"]
        'b'
    """
    found = [finding for trace in traces_of([run]) for finding in diagnose_trace(trace)]
    return tuple(sorted([*find_ending(run), *found], key=_rank))


def diagnose_trace(trace: Trace) -> list[Finding]:
    """Return the findings on one optimizer of a run, the worst first."""
    if not len(trace.steps):
        return []
    with np.errstate(all="ignore"):
        found = [finding for detector in _DETECTORS for finding in detector(trace)]
    if any(finding.kind == "exploding" for finding in found):
        # In a run that explodes, the norm spikes and the loss that stays high are part of that.
        found = [f for f in found if f.kind not in ("norm-spike", "plateau")]
    return sorted(found, key=_rank)


def _rank(finding: Finding) -> tuple[int, float]:
    return SEVERITIES.index(finding.severity), -1.0 if finding.step is None else finding.step
