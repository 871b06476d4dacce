"""States of gradclip.jax that an older version saved, pickled or in a checkpoint of plain data."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from gradclip import PolicyError
from gradclip.jax import ClipState, clip, restore

OLD: dict[str, Any] = json.loads((Path(__file__).parent / "old_states.json").read_text())
"""By policy: the state after five updates, pickled and as plain data, and the next update."""


def _optimizer(policy: str) -> tuple[Any, dict[str, jax.Array]]:
    tx = optax.chain(clip(policy, max_skips=2), optax.adam(0.1))
    return tx, {f"p{i}": jnp.linspace(-1, 1, 2 + i % 3) for i in range(3)}


def _arrays(tree: Any) -> Any:
    """Return plain data with its lists of numbers as arrays."""
    if isinstance(tree, dict):
        return {k: _arrays(v) for k, v in tree.items()}
    if isinstance(tree, list) and any(isinstance(v, (dict, list)) for v in tree):
        return [_arrays(v) for v in tree]
    return np.asarray(tree)


def _by_index(tree: Any) -> Any:
    """Return plain data as some checkpointers keep it: dictionaries in place of lists."""
    if isinstance(tree, dict):
        return {k: _by_index(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return {str(i): _by_index(v) for i, v in enumerate(tree)}
    return tree


def _next(policy: str, state: Any) -> Any:
    tx, params = _optimizer(policy)
    return jax.jit(tx.update)(jax.tree.map(lambda x: x * 9, params), state, params)


@pytest.mark.parametrize("form", ["lists", "dictionaries"])
@pytest.mark.parametrize("policy", OLD)
def test_an_old_checkpoint_goes_on_as_before(policy: str, form: str) -> None:
    tx, params = _optimizer(policy)
    saved = _arrays(OLD[policy]["plain"])
    for like in (tx.init(params), jax.eval_shape(tx.init, params)):
        state = restore(saved if form == "lists" else _by_index(saved), like)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
        assert (int(state[0].steps), int(state[0].skipped), int(state[0].in_a_row)) == (5, 1, 1)
        updates, state = _next(policy, state)
        for name, wanted in OLD[policy]["next"].items():
            assert_allclose(updates[name], wanted, rtol=1e-6)
        assert int(state[0].steps) == 6


@pytest.mark.parametrize("policy", OLD)
def test_an_old_pickle_goes_on_as_it_is(policy: str) -> None:
    old: Any = pickle.loads(base64.b64decode(OLD[policy]["pickle"]))
    tx, params = _optimizer(policy)
    for state in (jax.tree.map(jnp.asarray, old), restore(old, tx.init(params))):
        updates, new = _next(policy, state)
        for name, wanted in OLD[policy]["next"].items():
            assert_allclose(updates[name], wanted, rtol=1e-6)
        assert jax.tree.structure(new) == jax.tree.structure(tx.init(params))
        assert isinstance(new[0], ClipState)


def test_a_state_of_today_is_restored_as_it_is() -> None:
    tx, params = _optimizer("adagc:warmup=2")
    _, state = tx.update(params, tx.init(params), params)
    for saved in (state, jax.tree.map(np.asarray, state), (*state[:1], list(state[1]))):
        again = restore(saved, tx.init(params))
        assert jax.tree.structure(again) == jax.tree.structure(state)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_is_refused_by_its_name() -> None:
    tx, params = _optimizer("adagc:warmup=2")
    like, saved = tx.init(params), _arrays(OLD["adagc:warmup=2"]["plain"])
    other = _optimizer("norm:1.0")[0].init(params)
    with pytest.raises(PolicyError, match=r"saved\[0\]\.memory.*policy remembers 0"):
        restore(saved, other)
    with pytest.raises(PolicyError, match=r"saved.*no 1"):
        restore(saved[:1], like)
    with pytest.raises(PolicyError, match=r"saved\[0\].*no in_a_row"):
        restore([{k: v for k, v in saved[0].items() if k != "in_a_row"}, saved[1]], like)
    with pytest.raises(PolicyError, match=r"saved\[0\]\.recent.*other parameters"):
        restore([{**saved[0], "recent": np.zeros(1)}, saved[1]], like)
