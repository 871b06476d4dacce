"""The facts that the docs state of each method are those of the NumPy backend at work."""

from __future__ import annotations

import numpy as np
import pytest

import gradclip.numpy
from gradclip import parse
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.facts import COSTS, facts_of, remembered
from gradclip.method.traits import traits_of

SHAPES = ((4, 3), (5, 2), (7,))
POLICIES = [
    *(row.example for row in CATALOGUE.values()),
    *("zclip:max_norm=1.0", "zclip|spam", "feedback(zclip)", "autoclip:10,window=7,scope=tensor"),
]


def _kept(memory: object) -> int:
    """Return how many numbers a state holds."""
    if isinstance(memory, dict):
        return sum(map(_kept, memory.values()))
    if isinstance(memory, (list, tuple)):
        return sum(map(_kept, memory))
    return int(np.size(memory))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", POLICIES)
def test_as_many_numbers_are_remembered_as_is_said(text: str) -> None:
    policy = parse(text)
    grads = [np.ones(shape) for shape in SHAPES]
    _, state, _ = gradclip.numpy.clip(grads, policy, weights=grads, loss=1.0)
    values, tensors = sum(grad.size for grad in grads), len(grads)
    ranks = sum(min(shape) if len(shape) > 1 else 1 for shape in SHAPES)
    times = {"element": values, "tensor": tensors, "singular": ranks, "global": 1, "loss": 1}
    said = sum(count * times[scope] for scope, count in remembered(policy).items())
    assert _kept(state["memory"]) == said
    assert (facts_of(policy).remembers == "nothing") == (said == 0)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_limit_adapts_where_the_policy_has_a_memory_or_asks_for_weights(name: str) -> None:
    policy = CATALOGUE[name].policy
    traits = traits_of(policy)
    wrapped = CATALOGUE[name].purpose == "wrapper"  # The memory is the wrapper's, not the limit's.
    adapts = (traits.memory and not wrapped) or traits.weights
    assert (facts_of(policy).adapts != "no") == adapts


@pytest.mark.parametrize(
    ("text", "adapts", "remembers", "cost"),
    [
        ("norm:1.0", "no", "nothing", "read"),
        ("normalise", "no", "nothing", "read, write"),
        ("agc", "to weights", "nothing", "weights"),
        ("clippy", "to weights", "nothing", "weights"),
        ("autoclip", "to norms", "20,001 numbers", "read"),
        ("online_quantile", "to norms", "1 number", "read"),
        ("skip_outliers:of=loss", "to losses", "129 numbers", "read"),
        ("stable_spam", "per tensor", "5 numbers per tensor", "each value"),
        ("adaptive_spectral", "per matrix", "2 numbers per singular value", "matrices"),
        ("feedback(norm:1.0)", "no", "1 number per value", "each value"),
        ("zclip|spam", "to norms and per value", "3 numbers and 2 numbers per value", "each value"),
        ("a=agc;*=zclip", "to norms and to weights", "3 numbers", "weights"),
        ("none", "no", "nothing", "read"),
    ],
)
def test_the_facts_of_a_policy(text: str, adapts: str, remembers: str, cost: str) -> None:
    found = facts_of(parse(text))
    assert (found.adapts, found.remembers, found.cost) == (adapts, remembers, cost)
    assert found.cost in COSTS
