"""One small training for all cases: the same data, the same weights at the start."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

keras: Any = import_module("keras")
BACKEND: str = keras.backend.backend()


def model(optimizer: Any, **kwargs: Any) -> Any:
    """Return a compiled model of two layers, its weights the same each time."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, name="a"), keras.layers.Dense(1, name="b")]
    made = keras.Sequential(layers, name="net")
    made.build((None, 8))
    made.compile(optimizer=optimizer, loss="mse", **kwargs)
    return made


def data(batches: int = 8, nan_at: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """Return inputs and targets of batches of eight; some batches have a NaN."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batches, 8, 8)), rng.normal(size=(batches, 8, 1))
    for batch in nan_at:
        x[batch, 0, 0] = np.nan
    return x.reshape(-1, 8).astype("float32"), y.reshape(-1, 1).astype("float32")


def fit(made: Any, batches: int = 8, nan_at: tuple[int, ...] = (), **kwargs: Any) -> Any:
    """Train a model for one pass over the data; return its history."""
    x, y = data(batches, nan_at)
    return made.fit(x, y, batch_size=8, verbose=0, shuffle=False, **kwargs)


def arrays(variables: Any) -> list[np.ndarray]:
    """Return the values of variables, copied."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def weights(made: Any) -> list[np.ndarray]:
    """Return the weights of a model."""
    return arrays(made.trainable_variables)


def inner(made: Any) -> Any:
    """Return the optimizer of a model, without a loss scaler around it."""
    return getattr(made.optimizer, "inner_optimizer", made.optimizer)


def apply(optimizer: Any, variables: Any, *steps: Any) -> None:
    """Apply gradients by hand, step by step."""
    for grads in steps:
        optimizer.apply(
            [None if g is None else keras.ops.convert_to_tensor(g) for g in grads], variables
        )


def variable(value: Any, name: str) -> Any:
    """Return a variable of Keras."""
    return keras.Variable(np.asarray(value, "float32"), name=name)
