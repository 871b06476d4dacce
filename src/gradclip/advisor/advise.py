"""Recommend the policy for the next training run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..diagnosis import Finding, diagnose_trace
from ..errors import PolicyError, RecordError
from ..method.policy import AnyPolicy
from ..method.recipes import by_norm
from ..record import Run, Trace, traces_of
from ..show.words import counted
from .advice import Advice, Arm, Replayed
from .arm import arm_of, own_limit
from .choose import choose
from .grid import current_policy, policies_for
from .material import LARGEST, MOST_STEPS, Material, material_of, scores
from .search import ASIDE, FAILED, decide

__all__ = ["advise"]

ENOUGH = 50
"""The smallest number of steps for a rate; with fewer steps the advice has a caveat."""

ALIKE = 0.9
"""Runs are of one length if the shorter has at least this share of the longer one's losses."""

_COUNTERFACTUAL = (
    "A replay is counterfactual: clipping changes the weights and so every later norm; check "
    "the advice with a run."
)


@np.errstate(all="ignore")
def advise(
    runs: Run | Sequence[Run], *, optimizer: int | None = None, replays: bool = True
) -> Advice:
    """Recommend a policy from one record, or from several records of one script.

    One record decides whether its policy stays. The policy of a healthy run stays: nothing in its
    record shows that another policy is better. After any other run the advice is the policy
    `auto`. Several records are compared by their final losses, and the advice is the best of them
    or one more limit to try; after four policies it is the best of them.

    The advice has a replay, too: each policy runs through `gradclip.numpy` on gradients of one
    value, the recorded norm before clipping.

    Args:
        runs: a run from `gradclip.read_run`, or a sequence of runs of the same script in the order
            in which they were made; not mutated.
        optimizer: the id of an optimizer of the runs; None takes the optimizer with the most steps.
        replays: whether to replay policies, which takes 2 ms a step; without replays `policies` is
            empty, and there is no `trial` that would have caught the spikes.

    Returns:
        The advice.

    Raises:
        RecordError: there is no record, a record has no norm above zero and no fault that explains
            it, or the records are of different scripts or models.
        PolicyError: a record has no such optimizer.

    Example:
        >>> import tempfile
        >>> from gradclip import advise, read_run
        >>> from gradclip.record import RecordWriter
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with RecordWriter(path) as record:
        ...     for step in range(1, 101):
        ...         norm = 9.0 if step == 60 else 1.0 + step % 10 / 100
        ...         record.step(step=step, norm=norm, loss=2 - step / 100)
        >>> advice = advise(read_run(path))
        >>> advice.recommended, advice.settled, advice.trial
        ('none', True, 'norm:1.2')
    """
    given = [runs] if isinstance(runs, Run) else list(runs)
    if not given:
        raise RecordError("there is no record to advise on: give at least one")
    traces = [_trace(run, optimizer) for run in given]
    for trace in traces:
        _refuse_empty(trace)
    caveats = _comparable(traces)
    found = [diagnose_trace(trace) for trace in traces]
    arms = _arms(traces, found, caveats)
    decision = decide(arms)
    shown = next((i for i, arm in enumerate(arms) if arm.policy == decision.best), len(arms) - 1)
    trace = traces[shown]
    explosion = next((f for f in found[shown] if "reached_at" in f.evidence), None)
    material = material_of(trace, explosion)
    rows = list[Replayed]()
    if material is not None and replays:
        rows = scores(_grid(trace, material, decision.trial), material)
    trial = None if decision.trial is None else str(by_norm(decision.trial))
    if trial is None and len(arms) == 1 and arms[0].verdict == "healthy":
        trial = None if trace.marked("clipped").any() else choose(rows)
    steps = 0 if material is None else len(material.norm)
    own = own_limit(trace)
    caveats += _caveats(trace, found[shown], rows, steps)
    caveats += [] if own is None else [_replacing(decision.policy, own)]
    return Advice(
        decision.policy,
        decision.reason,
        (_COUNTERFACTUAL, *caveats) if rows else tuple(caveats),
        tuple(rows),
        steps,
        replaces=own is not None,
        script=trace.run.header.script,
        settled=decision.settled,
        arms=tuple(arms),
        best=decision.best,
        trial=trial,
    )


def _arms(traces: Sequence[Trace], found: list[list[Finding]], caveats: list[str]) -> list[Arm]:
    """Return an arm for each record, with losses that can be compared.

    Args:
        traces: the records; not mutated.
        found: the diagnosis of each; not mutated.
        caveats: gets a sentence for each limit of the comparison.
    """
    pairs = list(zip(traces, found, strict=True))
    arms = [arm_of(trace, findings) for trace, findings in pairs]
    ran = [
        int(trace.seen("loss").sum())
        for trace, arm in zip(traces, arms, strict=True)
        if arm.verdict not in FAILED and arm.loss is not None
    ]
    if ran and min(ran) < ALIKE * max(ran):
        caveats.append(
            f"The records have {min(ran):,} to {max(ran):,} losses: they are compared after "
            f"{min(ran):,}."
        )
        arms = [arm_of(trace, findings, min(ran)) for trace, findings in pairs]
    if len(arms) > 1:
        caveats += [
            f"{arm.record} has no loss, so it cannot be compared with the others."
            for arm in arms
            if arm.loss is None and arm.verdict not in (*FAILED, *ASIDE)
        ]
    return arms


def _trace(run: Run, optimizer: int | None) -> Trace:
    traces = traces_of([run])
    if optimizer is None:
        return max(traces, key=lambda trace: len(trace.steps))
    for trace in traces:
        if trace.optimizer == optimizer:
            return trace
    known = ", ".join(str(trace.optimizer) for trace in traces)
    raise PolicyError.of("optimizer", optimizer, f"{run.path} has {known}")


def _comparable(traces: Sequence[Trace]) -> list[str]:
    """Return what makes the comparison of the records unsure.

    Raises:
        RecordError: the records are of different scripts or models.
    """
    first, said = traces[0], []
    for other in traces[1:]:
        one, two = first.run.header.script, other.run.header.script
        names = [script[: 2 if script[0] == "-m" else 1] for script in (one, two) if script]
        if len(names) == 2 and names[0] != names[1]:
            raise RecordError(
                f"{first.run.path} is of {' '.join(names[0])} and {other.run.path} of "
                f"{' '.join(names[1])}: give records of one script, whose losses can be compared"
            )
        if _shapes(first) and _shapes(other) and _shapes(first) != _shapes(other):
            raise RecordError(
                f"{first.run.path} and {other.run.path} are of models with different parameters: "
                "give records of one model, whose losses can be compared"
            )
        if one and two and one != two:
            said.append(
                f"{other.run.path} has other arguments of the script than {first.run.path}."
            )
        if not np.isclose(_rate(first), _rate(other), equal_nan=True):
            said.append(
                f"{other.run.path} has another learning rate ({_rate(other):.3g}) than "
                f"{first.run.path} ({_rate(first):.3g}): their losses differ by that, too."
            )
    return said


def _shapes(trace: Trace) -> list[tuple[int, ...]]:
    described = trace.run.described(trace.optimizer)
    return [tuple(parameter.shape) for parameter in described.parameters] if described else []


def _rate(trace: Trace) -> float:
    """Return the largest learning rate; NaN if the record has none."""
    rate = trace.column("lr")
    rate = rate[np.isfinite(rate)]
    return float(rate.max()) if len(rate) else float("nan")


def _refuse_empty(trace: Trace) -> None:
    """Raise if a record has no gradient at all, so that it says nothing about its policy."""
    norm = trace.column("norm")
    if not trace.nonfinite.any() and not ((norm > 0) & (norm <= LARGEST)).any():
        raise RecordError(
            f"{trace.run.path} has no finite norm above zero to replay: record a run whose "
            "gradients are finite (`gradclip diagnose` says where they were not)"
        )


def _grid(trace: Trace, material: Material, limit: float | None) -> list[AnyPolicy]:
    grid = policies_for(material.calm, limit, layers=material.layers is not None)
    current = current_policy(trace)
    return [*grid, *([] if current is None or current in grid else [current])]


def _replacing(policy: str, limit: float) -> str:
    """Say what to do with the script's own limit, about which the norms before it tell as well."""
    if policy == "none":
        return f"The script's own limit is {limit:g}: take that clipping out."
    head, _, value = policy.partition(":")
    if head == "norm" and float(value) == limit:
        return f"The script's own limit is {limit:g}: leave it as it is."
    if head == "norm":
        return f"The script's own limit is {limit:g}: replace it by {value}, or use --take-over."
    return f"The script's own limit is {limit:g}: take that clipping out, or use --take-over."


def _caveats(
    trace: Trace, findings: list[Finding], rows: Sequence[Replayed], steps: int
) -> list[str]:
    kinds = {finding.kind for finding in findings}
    faults = {finding.kind for finding in findings if finding.severity != "note"}
    said = []
    if steps < ENOUGH:
        said.append(f"The advice comes from few steps: only {steps:,} could be replayed.")
    elif steps == MOST_STEPS < len(trace.steps):
        said.append(f"Only the last {MOST_STEPS:,} usable steps were replayed.")
    if any(f.kind == "double-clipping" and "value" in f.evidence for f in findings):
        said.append("The norms were cut before gradclip measured them, which hides large norms.")
    if "clip-before-unscale" in kinds:
        said.append("The gradients were clipped before they were unscaled: correct this first.")
    if {"vanishing", "dead-layers"} & faults:
        said.append("Part of the model gets hardly any gradient, and clipping cannot change this.")
    nonfinite = rows[0].nonfinite if rows else int(trace.nonfinite.sum())
    if nonfinite:
        were = "was" if nonfinite == 1 else "were"
        said.append(
            f"{counted(nonfinite, 'norm')} {were} not finite: the argument "
            "nonfinite='skip' decides about these steps, not the threshold."
        )
    if len(traces_of([trace.run])) > 1:
        said.append(f"The advice is for optimizer {trace.optimizer}; the run has several.")
    return said
