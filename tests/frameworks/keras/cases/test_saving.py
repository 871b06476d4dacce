"""Policy, memory and counters through configs and files of Keras."""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradclip import GradclipWarning, PolicyError, parse
from gradclip.integrations.keras import clipped

from .training import BACKEND, arrays, data, fit, inner, keras, model, weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

POLICY = "autoclip:50,64"
"""Clips to the median of all norms so far: about half of these steps."""


@pytest.fixture(autouse=True)
def float32() -> Any:
    yield
    keras.config.set_dtype_policy("float32")


def _optimizer(scaled: bool = False) -> Any:
    optimizer = clipped(keras.optimizers.Adam, POLICY)(0.001)
    if scaled:
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    return optimizer


def _part(made: Any, first: int, last: int) -> None:
    x, y = data(14)
    rows = slice(8 * first, 8 * last)
    made.fit(x[rows], y[rows], batch_size=8, verbose=0, shuffle=False)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_run_that_was_saved_goes_on_bit_for_bit(tmp_path: Path, scaled: bool) -> None:
    keras.config.set_dtype_policy("mixed_float16" if scaled else "float32")
    whole, half = model(_optimizer(scaled)), model(_optimizer(scaled))
    _part(whole, 0, 8)
    _part(whole, 8, 14)
    _part(half, 0, 8)
    half.save(tmp_path / "half.keras")
    again = keras.saving.load_model(tmp_path / "half.keras")
    for name in ("steps", "clipped_steps", "skipped_steps"):
        assert inner(again).clipping[name] == inner(half).clipping[name]
    _part(again, 8, 14)
    assert inner(again).clipping == inner(whole).clipping
    assert 2 < inner(whole).clipping["clipped_steps"] < 14
    for one, other in zip(weights(again), weights(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_memory_is_what_makes_it_equal() -> None:
    """The test above would pass without a memory if none was needed."""
    whole, half = model(_optimizer()), model(_optimizer())
    _part(whole, 0, 8)
    _part(whole, 8, 14)
    _part(half, 0, 8)
    forgetful = model(_optimizer())
    forgetful.set_weights(half.get_weights())
    _part(forgetful, 8, 14)
    assert inner(forgetful).clipping["limit"] != inner(whole).clipping["limit"]


@pytest.mark.skipif(BACKEND != "torch", reason="one backend is enough, and an import takes long")
def test_a_new_program_loads_the_model(tmp_path: Path) -> None:
    made = model(_optimizer())
    fit(made)
    made.save(tmp_path / "made.keras")
    code = (
        "import keras, gradclip.integrations.keras\n"
        f"o = keras.saving.load_model({str(tmp_path / 'made.keras')!r}).optimizer\n"
        "print(type(o).__name__, o.settings.policy, o.clipping['steps'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"ClippedAdam {parse(POLICY)} 8"


def test_the_config_is_plain_and_makes_the_same_again() -> None:
    optimizer = clipped(keras.optimizers.SGD, {"a/*": "norm:1.0", "*": None}, max_skips=3)(
        keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9),
        momentum=0.25,
        weight_decay=0.125,
        name="mine",
    )
    config = json.loads(json.dumps(optimizer.get_config()))
    again = type(optimizer).from_config(config)
    assert type(again) is type(optimizer)
    assert (again.momentum, again.weight_decay, again.name) == (0.25, 0.125, "mine")
    assert again.get_config() == optimizer.get_config()
    other = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(other) is type(optimizer)
    assert other.settings == optimizer.settings


def test_another_policys_optimizer_from_a_config_is_its_own() -> None:
    """All these classes have one registered name; what counts is the config."""
    first = clipped(keras.optimizers.SGD, "norm:1.0")(0.5)
    second = clipped(keras.optimizers.Adam, "value:1.0", nonfinite="zero")(0.5)
    for optimizer in (first, second):
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(optimizer)
        )
        assert type(again) is type(optimizer)


@keras.saving.register_keras_serializable("tests")
class Halved(keras.optimizers.SGD):
    """An optimizer of a user's: half the rate."""

    def __init__(self, *args: Any, shrink: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shrink = shrink

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient * self.shrink, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"shrink": self.shrink}


def test_an_optimizer_of_a_users_is_saved_too(tmp_path: Path) -> None:
    made = model(clipped(Halved, "norm:0.01")(1.0, shrink=0.5))
    before = weights(made)
    fit(made, batches=1)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(weights(made), before, strict=True)))
    assert moved == pytest.approx(0.005, rel=1e-4)
    made.save(tmp_path / "made.keras")
    again = keras.saving.load_model(tmp_path / "made.keras").optimizer
    assert type(again) is type(made.optimizer)
    assert again.shrink == 0.5
    assert again.clipping["steps"] == 1


def test_the_weights_of_the_optimizer_keep_keras_order() -> None:
    """Momentum and so on come first, as without gradclip; the memory on JAX comes after."""
    ours, theirs = model(_optimizer()), model(keras.optimizers.Adam(0.05))
    names = [[v.name for v in made.optimizer.variables] for made in (ours, theirs)]
    for made in (ours, theirs):
        made.optimizer.build(made.trainable_variables)
    names = [[v.shape for v in made.optimizer.variables] for made in (ours, theirs)]
    own = [v for v in ours.optimizer.variables if "gradclip" in v.name]
    assert bool(own) == (BACKEND == "jax")
    assert set(map(str, names[1])) <= set(map(str, names[0]))
    assert len(names[0]) == len(names[1]) + len(own)


def test_a_file_of_an_unclipped_optimizer_brings_no_memory() -> None:
    plain = keras.optimizers.Adam(0.05)
    plain.build([keras.Variable(np.zeros(2, "float32"), name="w")])
    ours = _optimizer()
    ours.build([keras.Variable(np.zeros(2, "float32"), name="w")])
    store: dict[str, Any] = {}
    plain.save_own_variables(store)
    said = UserWarning if BACKEND == "jax" else GradclipWarning  # JAX's come from Keras: a count.
    with pytest.warns(said, match="variables|begins anew"):
        ours.load_own_variables(store)
    assert ours.clipping["steps"] == 0


def _go_on(optimizer: Any, store: dict[str, Any], variables: list[Any]) -> None:
    optimizer.load_own_variables(store)
    optimizer.apply([keras.ops.convert_to_tensor([1.0, 2.0])], variables)


@pytest.mark.skipif(BACKEND == "jax", reason="its variables are Keras's, which compares shapes")
def test_a_memory_of_another_policy_is_refused() -> None:
    store: dict[str, Any] = {}
    variables = [keras.Variable(np.zeros(2, "float32"), name="w")]
    first = clipped(keras.optimizers.SGD, POLICY)(1.0)
    first.apply([keras.ops.convert_to_tensor([1.0, 2.0])], variables)
    first.save_own_variables(store)
    second = clipped(keras.optimizers.SGD, "zclip")(1.0)
    second.build(variables)
    with pytest.raises(PolicyError, match="policy"):  # TensorFlow's is looked at by the next step.
        _go_on(second, store, variables)


def test_rules_that_hold_for_other_variables_after_loading_are_refused() -> None:
    """Keras calls a variable "net/a/kernel" or "a/kernel", as the model was made."""
    store: dict[str, Any] = {}
    rules = {"a/*": POLICY, "*": None}

    def named(*paths: str) -> list[Any]:
        found = [keras.Variable(np.zeros(2, "float32"), name="w") for _ in paths]
        for each, path in zip(found, paths, strict=True):
            each._path = path
        return found

    first = clipped(keras.optimizers.SGD, rules)(1.0)
    before = named("a/w", "b/w")
    first.apply([keras.ops.convert_to_tensor([1.0, 2.0])] * 2, before)
    first.save_own_variables(store)
    second = clipped(keras.optimizers.SGD, rules)(1.0)
    second.build(named("b/w", "a/w"))
    with pytest.raises(PolicyError, match=r"begin each pattern with \*"):
        second.load_own_variables(store)
    third = clipped(keras.optimizers.SGD, rules)(1.0)
    third.build(named("a/w", "net/b/w"))
    third.load_own_variables(store)
    assert third.clipping["steps"] == 1


def test_a_cloned_model_has_an_optimizer_of_its_own() -> None:
    made = model(_optimizer())
    fit(made)
    clone = keras.models.clone_model(made)
    clone.compile(type(made.optimizer).from_config(made.optimizer.get_config()), loss="mse")
    assert clone.optimizer.clipping["steps"] == 0
    fit(clone, batches=2)
    assert clone.optimizer.clipping["steps"] == 2
    assert made.optimizer.clipping["steps"] == 8
    assert arrays(clone.trainable_variables)
