"""Recommend the policy for the next training run."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..diagnosis import Finding, diagnose_trace
from ..diagnosis.piles import find_pile, script_limit
from ..diagnosis.spikes import loss_spikes, norm_bound
from ..diagnosis.thresholds import changes_every_step
from ..errors import PolicyError, RecordError
from ..method.policy import AnyPolicy, Policy
from ..method.recipes import by_norm
from ..method.response import Rescale
from ..method.threshold import Fixed
from ..record import Run, Trace, traces_of
from ..record.rows import Floats
from .advice import Advice, Replayed
from .choose import choose
from .grid import current_policy, policies_for, rounded
from .replay import replay
from .settle import heavy_tailed, settled
from .start import MIN_NORMS, guess, norms_before, stuck_since, went_wrong

__all__ = ["advise"]

CUT = 0.1
"""An ordinary step that loses more than this share of its norm is a false alarm."""

ENOUGH = 50
"""The smallest number of steps for a rate; with fewer steps the advice has a caveat."""

MOST_STEPS = 2000
"""The largest number of steps in a replay, the last ones. A step takes about 2 ms, and this number
is enough for the rates."""

LARGEST = 1e150
"""A larger norm counts as non-finite, because its square may not be a finite float."""

HALF = 0.5
"""The advice keeps the policy of a healthy run up to this share of clipped steps."""

_COUNTERFACTUAL = (
    "A replay is counterfactual: clipping changes the weights and so every later norm; check "
    "the advice with a run."
)


class _Material(NamedTuple):
    """The part of a trace that can be replayed."""

    norm: Floats
    """The finite norms, in the order of the steps."""
    bound: Floats
    """The bound of each norm, over which the norm is a spike; NaN if there is no bound."""
    growth: NDArray[np.bool_]
    """Whether the step is part of an explosion."""
    led: NDArray[np.bool_]
    """Whether the norm is a spike before a spike of the loss."""
    layers: Floats | None
    """The norm of each layer at these steps, 0 for a layer without a gradient."""
    nonfinite: int
    """The number of steps with a non-finite norm."""


@np.errstate(all="ignore")
def advise(run: Run, *, optimizer: int | None = None) -> Advice:
    """Apply many policies to the norms of a record, and recommend one of them.

    Each policy runs through `gradclip.numpy` on gradients of one value, the recorded norm. The
    replay takes the norms before clipping, so that the record of a clipped run works too.

    Args:
        run: a run from `gradclip.read_run`; not mutated.
        optimizer: the id of an optimizer of the run; None takes the optimizer with the most steps.

    Returns:
        The advice.

    Raises:
        RecordError: the record has no finite norm above zero.
        PolicyError: the record has no such optimizer.

    Example:
        >>> import tempfile
        >>> from gradclip import advise, read_run
        >>> from gradclip.record import RecordWriter
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with RecordWriter(path) as record:
        ...     for step in range(1, 101):
        ...         record.step(step=step, norm=9.0 if step == 60 else 1.0 + step % 10 / 100)
        >>> advice = advise(read_run(path))
        >>> advice.recommended, advice.code
        ('norm:1.2', 'attach(optimizer, "norm:1.2")')
    """
    trace = _trace(run, optimizer)
    findings = diagnose_trace(trace)
    explosion = next((f for f in findings if "reached_at" in f.evidence), None)
    lost = explosion is not None and explosion.severity == "error"
    material, calm = _material(trace, explosion, lost=lost)
    caveats = [_COUNTERFACTUAL, *_caveats(run, trace, findings, material)]
    current = current_policy(trace)
    first = _first_limit(trace, explosion, clipped=current is not None)
    grid = policies_for(
        calm, None if first is None else first[0], layers=material.layers is not None
    )
    if current is not None:
        current = next((policy for policy in grid if policy == current), current)
        grid = [*grid, *([] if current in grid else [current])]
    rows = _replay(grid, material)
    best, reason = choose(rows)
    if first is not None:
        limit, reason = first
        best = rows[grid.index(by_norm(limit))]
    elif current is not None:
        own = rows[grid.index(current)]
        limit = _next_limit(trace, current, own)
        if limit is not None:
            best = _replay([by_norm(limit)], material)[0]
            rows.append(best)
            reason = _settling(own)
        elif _keeps(own, findings):
            best = own
            reason = (
                f"Keep the policy of this run: the run is healthy, and the policy clips "
                f"{best.clip_rate:.1%} of the steps. This record cannot show the effect of a "
                "higher limit."
            )
    own_limit = None if find_pile(trace) else script_limit(trace)
    if own_limit is not None:
        caveats.append(_replacing(best.policy, own_limit))
    return Advice(
        best.policy, reason, tuple(caveats), tuple(rows), len(material.norm), own_limit is not None
    )


def _replacing(policy: str, limit: float) -> str:
    """Say what to do with the script's own limit, about which the norms before it tell as well."""
    if policy == "none":
        return f"The script's own limit is {limit:g}: take that clipping out."
    head, _, value = policy.partition(":")
    if head == "norm":
        return f"The script's own limit is {limit:g}: replace it by {value}, or use --take-over."
    return f"The script's own limit is {limit:g}: take that clipping out, or use --take-over."


def _first_limit(
    trace: Trace, explosion: Finding | None, *, clipped: bool
) -> tuple[float, str] | None:
    """Return a limit from the norms before the run failed, and the reason, or None."""
    wrong = went_wrong(trace, explosion)
    limit = None if wrong is None else guess(trace, wrong, LARGEST)
    if limit is not None:
        return rounded(limit) or limit, (
            f"The run fails at step {wrong}, close to its start, and only the norms before that "
            "step can be trusted. This limit is a first guess: a tenth of the smallest of these "
            "norms, or half of the limit that did not prevent the failure. Record a run with this "
            "limit and ask again."
        )
    if clipped:
        return None
    stuck = stuck_since(trace)
    before = norms_before(trace, stuck or 0, LARGEST)
    if stuck is None or len(before) < MIN_NORMS:
        return _median_limit(trace) if heavy_tailed(trace) else None
    return rounded(float(np.median(before))), (
        f"The run has learnt nothing since the norm spiked at step {stuck}, so its later norms "
        "come from a model that is stuck. This limit is the median of the norms before that step. "
        "Record a run with this limit and ask again."
    )


def _median_limit(trace: Trace) -> tuple[float, str]:
    norms = norms_before(trace, math.inf, LARGEST)
    return rounded(float(np.median(norms))), (
        "The norms have a heavy tail: spikes are frequent and large. For such norms the limits "
        "near the median norm do best, and this limit is the median. Record a run with this limit "
        "and ask again."
    )


def _next_limit(trace: Trace, current: AnyPolicy, own: Replayed) -> float | None:
    """Return the limit to try after the limit of the record, or None to keep this limit."""
    if not isinstance(current, Policy) or not isinstance(current.threshold, Fixed):
        return None
    if not isinstance(current.response, Rescale):
        return None
    limit = settled(trace, safe=own.spikes == 0)
    return None if limit is None else rounded(limit) or limit


def _settling(own: Replayed) -> str:
    return (
        f"The limit of this run acted at {own.clip_rate:.1%} of its steps. If a run needs "
        "clipping, a limit near the median norm of the clipped run does best. The norms change "
        "with the limit, so this limit is half way to the median norm. Record a run with this "
        "limit and ask again."
    )


def _trace(run: Run, optimizer: int | None) -> Trace:
    traces = traces_of([run])
    if optimizer is None:
        return max(traces, key=lambda trace: len(trace.steps))
    for trace in traces:
        if trace.optimizer == optimizer:
            return trace
    known = ", ".join(str(trace.optimizer) for trace in traces)
    raise PolicyError.of("optimizer", optimizer, f"{run.path} has {known}")


def _material(trace: Trace, explosion: Finding | None, *, lost: bool) -> tuple[_Material, Floats]:
    """Return the material of the replay, and the norms whose quantiles are thresholds.

    Both leave out the steps after an explosion from which the run did not recover.
    """
    norm, bound = trace.column("norm"), norm_bound(trace.column("norm"))
    usable = np.isfinite(norm) & (norm >= 0) & (norm <= LARGEST)
    nonfinite = int((trace.seen("norm") & ~usable).sum())
    growth = np.zeros(len(norm), dtype=np.bool_)
    if explosion is not None and explosion.step is not None:
        reached = explosion.evidence["reached_at"]
        assert isinstance(reached, int)
        growth = (trace.steps >= explosion.step) & (trace.steps <= reached)
        usable &= (trace.steps <= reached) | (not lost)
    led = np.isin(trace.steps, [spike.norm_step or -1 for spike in loss_spikes(trace)])
    bound = np.where(led & np.isnan(bound), norm_bound(norm, least=1), bound)
    layers = _layers(trace)
    if layers is not None:
        usable &= np.isfinite(layers).all(axis=1) & (layers <= LARGEST).all(axis=1)
    rows = np.flatnonzero(usable)
    calm = norm[rows[~growth[rows]]]
    if not (calm > 0).any():
        calm = norm[rows]
    if not (calm > 0).any():
        raise RecordError(
            f"{trace.run.path} has no finite norm above zero to replay: record a run whose "
            "gradients are finite (`gradclip diagnose` says where they were not)"
        )
    rows = rows[-MOST_STEPS:]
    picked = None if layers is None else layers[rows]
    return _Material(norm[rows], bound[rows], growth[rows], led[rows], picked, nonfinite), calm[
        calm > 0
    ]


def _layers(trace: Trace) -> Floats | None:
    """Return the norm of each layer, 0 for an absent gradient; None if a step lacks the norms."""
    steps, names, matrix = trace.norms
    if len(names) < 2 or len(steps) != len(trace.steps) or (steps != trace.steps).any():
        return None
    return np.where(np.isnan(matrix) & ~trace.nonfinite[:, None], 0.0, matrix)


def _replay(grid: list[AnyPolicy], material: _Material) -> list[Replayed]:
    alone = material.norm[:, None]
    policies = {f"p{index}": policy for index, policy in enumerate(grid)}
    norms = {}
    for name, policy in policies.items():
        each = isinstance(policy, Policy) and policy.measure.scope == "tensor"
        assert not each or material.layers is not None
        norms[name] = material.layers if each and material.layers is not None else alone
    left = replay(policies, norms)
    return [
        _score(str(policy), norms[name], left[name], material) for name, policy in policies.items()
    ]


def _score(policy: str, before: Floats, after: Floats, material: _Material) -> Replayed:
    with np.errstate(all="ignore"):
        total = np.sqrt((before**2).sum(axis=1))
        gone = np.where(total > 0, np.sqrt(((before - after) ** 2).sum(axis=1)) / total, 0.0)
        share = np.where(total > 0, np.sqrt((after**2).sum(axis=1)) / total, 1.0)
    clipped = (before != after).any(axis=1)
    spike = material.norm > material.bound
    # An explosion has no usual norm: a policy catches a step if it removes over a tenth of it.
    caught = np.where(material.growth & ~spike, gone > CUT, material.norm * share <= material.bound)
    spike |= material.growth
    alarm = ~spike & (gone > CUT)
    led = material.led & spike
    return Replayed(
        policy=policy,
        clip_rate=float(clipped.mean()),
        removed=float(gone.mean()),
        removed_when_clipped=float(gone[clipped].mean()) if clipped.any() else None,
        spikes=int(spike.sum()),
        spikes_caught=int((spike & caught).sum()),
        loss_spikes=int(led.sum()),
        loss_spikes_caught=int((led & caught).sum()),
        false_alarms=int(alarm.sum()),
        false_alarm_rate=float(alarm.sum() / max((~spike).sum(), 1)),
        nonfinite=material.nonfinite,
    )


def _keeps(row: Replayed, findings: list[Finding]) -> bool:
    """Return whether the record's own policy acted and the run is healthy."""
    acted = 0 < row.clip_rate <= HALF and row.spikes_caught == row.spikes
    healthy = all(finding.severity == "note" for finding in findings)
    return acted and healthy and not changes_every_step(row.policy)


def _caveats(run: Run, trace: Trace, findings: list[Finding], material: _Material) -> list[str]:
    kinds = {finding.kind for finding in findings}
    faults = {finding.kind for finding in findings if finding.severity != "note"}
    said = []
    if len(material.norm) < ENOUGH:
        said.append(
            f"The advice comes from few steps: only {len(material.norm)} could be replayed."
        )
    elif len(material.norm) == MOST_STEPS < len(trace.steps):
        said.append(f"Only the last {MOST_STEPS:,} usable steps were replayed.")
    if any(f.kind == "double-clipping" and "value" in f.evidence for f in findings):
        said.append("The norms were cut before gradclip measured them, which hides large norms.")
    if "clip-before-unscale" in kinds:
        said.append("The gradients were clipped before they were unscaled: correct this first.")
    if {"vanishing", "dead-layers"} & faults:
        said.append("Part of the model gets hardly any gradient, and clipping cannot change this.")
    if material.nonfinite:
        said.append(
            f"{material.nonfinite:,} norms were not finite: the argument nonfinite='skip' decides "
            "about these steps, not the threshold."
        )
    if len(traces_of([run])) > 1:
        said.append(f"The advice is for optimizer {trace.optimizer}; the run has several.")
    return said
