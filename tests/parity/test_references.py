"""Every method against an independent float64 implementation written from its paper.

Each file of `tests/reference/` has a class `Reference` and a table `PAIRS`: from the text of a
policy to the arguments for which the class must do the same. A new file is found by itself.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip.numpy
from contract.test_clip import ROWS as ORACLE_ROWS
from gradclip import parse
from gradclip.method.catalogue import CATALOGUE
from stream import stream, weights

FILES = sorted(p for p in (Path(__file__).parents[1] / "reference").glob("[a-z]*.py"))
MODULES = {
    path.stem: importlib.import_module(f"reference.{path.stem}")
    for path in FILES
    if not path.stem.startswith("test_")
}
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    text: (name, arguments)
    for name, module in MODULES.items()
    for text, arguments in module.PAIRS.items()
}
"""From the text of a policy to the name of the reference's module, and the arguments."""

# These are special cases of methods that the oracle judges: their own tests say of which.
SAME_AS = {
    "block_rms": "norm:1.0,order=rms,scope=tensor",
    "average_norm": "norm:1.0,order=average,scope=tensor",
}
JUDGED_ELSEWHERE = {"skip_above"}  # One comparison: test_methods.py sees which steps are skipped.


def reference_for(text: str) -> Any:
    """Return a new reference for the policy that this text describes."""
    name, arguments = PAIRS[text]
    made = MODULES[name].Reference(**arguments)
    return _OneWorker(made) if name == "centered" else made


class _OneWorker:
    """The reference of centered clipping takes a flat vector from each worker: here from one."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def step(
        self, grads: list[np.ndarray], _weights: Any, _loss: Any
    ) -> tuple[list[np.ndarray], bool]:
        out, skip = self._reference.step([np.concatenate([g.ravel() for g in grads])])
        if skip:
            return grads, True
        ends = np.cumsum([g.size for g in grads])[:-1]
        parts = np.split(out[0], ends)
        return [p.reshape(g.shape) for p, g in zip(parts, grads, strict=True)], False


def largest_difference(policy: Any, reference: Any, *, seed: int = 0) -> float:
    """Return the largest difference over the stream, relative to each step's largest value."""
    state, worst = None, 0.0
    for step, (grads, loss) in enumerate(stream(seed)):
        ours, state, result = gradclip.numpy.clip(
            grads, policy, state, weights=weights(), loss=loss
        )
        theirs, skip = reference.step([g.copy() for g in grads], weights(), loss)
        assert bool(result.skipped) == bool(skip), f"step {step}: one of the two skips"
        if skip:
            continue
        scale = max(float(np.abs(t).max()) for t in theirs) or 1.0
        gap = max(float(np.abs(o - t).max()) for o, t in zip(ours, theirs, strict=True))
        worst = max(worst, gap / scale)
    return worst


@pytest.mark.parametrize("text", PAIRS)
def test_agrees_with_its_reference(text: str) -> None:
    assert largest_difference(text, reference_for(text)) < 1e-12


@pytest.mark.parametrize("text", [t for t in PAIRS if not t.startswith("skip")])
def test_the_comparison_can_fail(text: str) -> None:
    """A method's reference rejects plain gradients: the two would differ if we did nothing.

    A skip rule changes no gradient; the steps that it skips are compared one by one.
    """
    assert largest_difference("none", reference_for(text)) > 1e-3


@pytest.mark.parametrize("name", MODULES)
def test_every_reference_is_compared_with_a_policy(name: str) -> None:
    pairs = getattr(MODULES[name], "PAIRS", {})
    assert pairs, f"give tests/reference/{name}.py a table PAIRS, as the other files have"


def _methods(text: str) -> set[str]:
    """Return the names of the methods that a policy is made of."""
    policy = parse(text)
    calls = [getattr(part, "call", None) for part in (policy, *policy.links)]
    return {call.recipe for call in calls if call is not None}


def test_every_method_has_a_reference() -> None:
    compared = set().union(*map(_methods, PAIRS)) | {row.recipe for row in ORACLE_ROWS}
    missing = CATALOGUE.keys() - compared - SAME_AS.keys() - JUDGED_ELSEWHERE
    assert not missing, f"write tests/reference/{sorted(missing)[0]}.py, with a table PAIRS"


@pytest.mark.parametrize("name", SAME_AS)
def test_a_special_case_is_the_same_policy(name: str) -> None:
    assert parse(f"{name}:1.0") == parse(SAME_AS[name])
