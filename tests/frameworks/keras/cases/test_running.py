"""Compiled, eager, by hand; and what is logged."""

# pyright: reportMissingImports=false
from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradclip import PolicyError, read_run
from gradclip.integrations.keras import LogClipping, clipped

from .training import BACKEND, apply, arrays, data, fit, inner, keras, model, variable, weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _sgd(policy: Any = "norm:0.01", **kwargs: Any) -> Any:
    return clipped(keras.optimizers.SGD, policy)(0.5, **kwargs)


@pytest.fixture(autouse=True)
def float32() -> Any:
    yield
    keras.config.set_dtype_policy("float32")


def test_eager_and_compiled_are_the_same() -> None:
    eager, other = model(_sgd("zclip:z=0.5"), run_eagerly=True), model(_sgd("zclip:z=0.5"))
    fit(eager)
    fit(other)
    for one, two in zip(weights(eager), weights(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    assert eager.optimizer.clipping["steps"] == other.optimizer.clipping["steps"] == 8


@pytest.mark.skipif(BACKEND == "torch", reason="XLA is not of torch")
def test_compiled_by_xla_it_works_on_jax_and_is_refused_on_tensorflow() -> None:
    made = model(_sgd(), jit_compile=True)
    if BACKEND == "jax":
        fit(made)
        assert made.optimizer.clipping["clipped_steps"] == 8
        return
    before = weights(made)
    with pytest.raises(PolicyError, match="jit_compile=True is not usable: gradclip clips on the"):
        fit(made)
    for one, two in zip(weights(made), before, strict=True):
        np.testing.assert_array_equal(one, two)
    made.compile(made.optimizer, loss="mse", jit_compile=False)
    fit(made)
    assert made.optimizer.clipping["clipped_steps"] == 8


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_several_replicas_of_tensorflow_are_refused() -> None:
    import tensorflow as tf  # pyright: ignore

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    with tf.distribute.MirroredStrategy(names).scope():
        optimizer = _sgd()
        with pytest.raises(PolicyError, match="2 replicas"):
            optimizer.build([variable([0.0], "w")])


def test_an_embedding_of_tensorflow_is_clipped_as_a_whole() -> None:
    """Its gradient is a list of rows, some of them twice."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    made = keras.Sequential(layers)
    made.build((None, 4))
    made.compile(_sgd("norm:0.01"), loss="mse")
    before = weights(made)
    made.fit(np.array([[1, 1, 2, 1]] * 4), np.full((4, 1), 9.0), batch_size=4, verbose=0)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(weights(made), before, strict=True)))
    assert moved == pytest.approx(0.005, rel=1e-3)


def test_a_train_step_of_ones_own_is_clipped() -> None:
    """Without `fit`: gradients by hand, then `apply` or, on JAX, `stateless_apply`."""
    weight = variable([1.0, 1.0], "w")
    optimizer = _sgd("norm:0.1")
    optimizer.build([weight])
    if BACKEND == "jax":
        import jax

        def step(w: Any, state: Any) -> Any:
            grads = jax.grad(lambda w: (w[0] * w**2).sum() * 100)(w[0])
            (new,), state = optimizer.stateless_apply(state, [grads], w)
            return [new], state

        step = jax.jit(step)
        values, state = [weight.value], [v.value for v in optimizer.variables]
        for _ in range(3):
            values, state = step(values, state)
        weight.assign(values[0])
        for own, value in zip(optimizer.variables, state, strict=True):
            own.assign(value)
    else:
        apply(optimizer, [weight], *([[[300.0, 400.0]]] * 3))
    assert optimizer.clipping["clipped_steps"] == 3
    moved = np.linalg.norm(arrays([weight])[0] - 1.0)
    assert moved == pytest.approx(3 * 0.05, rel=1e-3)


def test_apply_gradients_of_old_is_clipped() -> None:
    weight = variable([0.0, 0.0], "w")
    optimizer = _sgd("norm:1.0")
    optimizer.apply_gradients([(keras.ops.convert_to_tensor([3.0, 4.0]), weight)])
    np.testing.assert_allclose(arrays([weight])[0], [-0.3, -0.4], rtol=1e-6)


def test_weights_that_are_frozen_are_left_out() -> None:
    made = model(_sgd())
    made.layers[0].trainable = False
    made.compile(_sgd(), loss="mse")
    before = arrays(made.layers[0].variables)
    fit(made, batches=2)
    assert len(made.optimizer.side.names) == 2
    for one, two in zip(arrays(made.layers[0].variables), before, strict=True):
        np.testing.assert_array_equal(one, two)


# ---- the log ----------------------------------------------------------------------------------


def test_the_numbers_are_in_the_logs_and_in_a_record(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made = model(_sgd("norm:0.01"))
    table = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    history = fit(made, nan_at=(5,), callbacks=[LogClipping(path), table]).history
    assert history["clip/rate"] == [7 / 8]
    assert history["clip/skipped"] == history["clip/nonfinite"] == [1.0]
    assert history["grad_norm/post"][0] == pytest.approx(0.01, rel=1e-6)
    assert history["grad_norm/pre"][0] > 0.01
    (row,) = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    assert float(row["grad_norm/pre"]) == pytest.approx(history["grad_norm/pre"][0])
    run = read_run(path)
    assert len(run.column("norm")) == 8
    assert run.column("skipped").tolist() == [False] * 5 + [True] + [False] * 2
    assert sorted(p.name for p in run.optimizers[0].parameters) == sorted(inner(made).side.names)
    assert run.optimizers[0].class_name == "SGD"
    assert np.isfinite(run.column("lr")).all()


def test_accumulated_batches_have_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made = model(_sgd(gradient_accumulation_steps=4))
    fit(made, callbacks=[LogClipping(path)])
    assert read_run(path).column("step").tolist() == [1, 2]


def test_the_log_goes_on_in_the_next_fit(tmp_path: Path) -> None:
    made = model(_sgd())
    for name in ("one", "two"):
        fit(made, batches=3, callbacks=[LogClipping(tmp_path / f"{name}.jsonl")])
    assert read_run(tmp_path / "two.jsonl").column("step").tolist() == [4, 5, 6]


def test_it_reads_once_in_so_many_batches(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    made = model(_sgd())
    history = fit(made, callbacks=[LogClipping(path, every=3)]).history
    assert read_run(path).column("step").tolist() == [3, 6, 8]
    assert history["clip/rate"] == [1.0]


def test_under_a_loss_scaler_it_finds_the_optimizer() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    made = model(keras.optimizers.LossScaleOptimizer(_sgd(), initial_scale=8.0))
    assert fit(made, callbacks=[LogClipping()]).history["clip/rate"] == [1.0]


def test_an_optimizer_that_is_not_clipped_has_no_log() -> None:
    made = model(keras.optimizers.SGD(0.5))
    with pytest.raises(PolicyError, match=r"compile the model with clipped\("):
        fit(made, callbacks=[LogClipping()])


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_torch_has_a_clipper_to_record(tmp_path: Path) -> None:
    from gradclip.torch import Clipper, record

    made = model(_sgd())
    made.optimizer.build(made.trainable_variables)
    clipper = made.optimizer.side.clipper
    assert isinstance(clipper, Clipper)
    with record(clipper, tmp_path / "run.jsonl"):
        fit(made)
    assert len(read_run(tmp_path / "run.jsonl").column("norm")) == 8
    x, _ = data(1)
    clipper.detach()  # From now on it is Keras's optimizer.
    before = weights(made)
    made.fit(x, np.full((8, 1), 100.0), batch_size=8, verbose=0)
    assert clipper.steps == 8
    assert max(np.abs(a - b).max() for a, b in zip(weights(made), before, strict=True)) > 0.01
