"""A Keras callback that logs what a clipped optimizer did."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras  # pyright: ignore[reportMissingImports]

from ...checks import integer
from ...errors import PolicyError
from ...record import Parameter, RecordWriter
from ...record.place import IfExists
from ...sinks.scalars import Counts, scalars
from .optimizer import Clipped

__all__ = ["LogClipping"]


# Type checkers know no type of Keras's callbacks.
_Callback = object if TYPE_CHECKING else keras.callbacks.Callback


class LogClipping(_Callback):
    """Puts the clipping's numbers into Keras's logs, and into a record.

    The names are those of `gradclip.sinks.scalars`: "grad_norm/pre", "grad_norm/post",
    "clip/rate", "clip/skipped" and so on. They are in the logs of each batch that stepped and of
    each epoch (those of its last step), for the callbacks after this one: `History`, the progress
    bar, `CSVLogger`, `TensorBoard` and whatever else reads logs.

    Args:
        path: a record to write, for `gradclip report` and `read_run`; None writes none.
        every: reads the numbers once in so many batches, ≥ 1: a read waits for the device. The
            record has no rows of the steps between.
        sinks: where the rows of the record go as well; see `gradclip.torch.record`.
        if_exists: see `gradclip.torch.record`.

    Raises:
        PolicyError: an argument is wrong; when training begins: the model's optimizer is not
            `clipped`.
        RecordError: the record cannot be written.

    Example:
        >>> import keras, numpy as np
        >>> from gradclip.integrations.keras import LogClipping, clipped
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> model.compile(clipped(keras.optimizers.SGD, "norm:1.0")(0.1), loss="mse")
        >>> x, y = np.ones((8, 2)), np.full((8, 1), 100.0)
        >>> history = model.fit(x, y, verbose=0, callbacks=[LogClipping()])
        >>> round(history.history["grad_norm/post"][0], 4)
        1.0
    """

    model: Any

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        every: int = 1,
        sinks: Iterable[object] = (),
        if_exists: IfExists = "part",
    ) -> None:
        super().__init__()
        self._every = integer("every", every, low=1)
        self._place = path, list(sinks), if_exists
        self._writer: RecordWriter | None = None
        self._values: dict[str, float] = {}
        self._batches = self._steps = self._bad = 0
        self._id = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the optimizer, and open the record."""
        del logs
        path, sinks, if_exists = self._place
        optimizer = self._optimizer()
        self._batches = self._bad = 0
        self._sync()
        self._steps = int(optimizer.clipping["steps"])
        if path is not None:
            policy = str(optimizer.settings.policy)
            self._writer = RecordWriter(path, if_exists=if_exists, policy=policy, sinks=sinks)
            if optimizer.side is not None:
                self._describe()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Log the step of this batch, if there was one."""
        del batch
        self._batches += 1
        if self._batches % self._every == 0:
            self._log(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the numbers of the last step into the epoch's logs."""
        del epoch
        self._log(logs)
        if logs is not None:
            logs.update(self._values)

    def on_train_end(self, logs: Any = None) -> None:
        """End the record."""
        del logs
        if self._writer is not None:
            self._writer.end()
            self._writer = None

    def _optimizer(self) -> Any:
        model: Any = self.model
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if not isinstance(optimizer, Clipped):
            remedy = "compile the model with clipped(keras.optimizers.Adam, policy)(1e-3)"
            raise PolicyError.of("model.optimizer", type(optimizer).__name__, remedy)
        return optimizer

    def _sync(self) -> None:
        """Have the optimizer's variables hold the values of now: in JAX's `fit` they do not."""
        sync = getattr(self.model, "jax_state_sync", None)
        if sync is not None:
            sync()

    def _log(self, logs: Any) -> None:
        self._sync()
        optimizer = self._optimizer()
        numbers = optimizer.clipping
        if numbers["steps"] == self._steps:  # Only accumulated, or left out by a loss scaler.
            return
        self._steps = int(numbers["steps"])
        self._bad += not math.isfinite(numbers["total_norm"])
        row = self._row(optimizer, numbers)
        clipped, skipped = int(numbers["clipped_steps"]), int(numbers["skipped_steps"])
        self._values = scalars(row, Counts(self._steps, clipped, skipped, self._bad))
        if self._writer is not None:
            if not self._id:
                self._describe()
            loss = None if logs is None else logs.get("loss")
            self._writer.step(**row | {"optimizer": self._id, "loss": loss})
        if logs is not None:
            logs.update(self._values)

    def _row(self, optimizer: Any, numbers: Any) -> dict[str, Any]:
        """Return what `RecordWriter.step` takes of the last step."""
        norms = optimizer.side.norms()
        bad = [n for n, v in zip(optimizer.side.names, norms, strict=True) if not math.isfinite(v)]
        rate: Any = keras.ops.convert_to_numpy(optimizer.learning_rate)
        same = ("clipped_norm", "coef", "removed", "cosine")
        return {
            "step": self._steps,
            "lr": float(rate),
            "norm": numbers["total_norm"],
            "limit": None if math.isnan(numbers["limit"]) else numbers["limit"],
            "clipped": bool(numbers["clipped"]),
            "skipped": bool(numbers["skipped"]),
            "nonfinite": bad,
            "norms": norms,
            **{name: numbers[name] for name in same},
        }

    def _describe(self) -> None:
        """Write which variables the norms belong to."""
        assert self._writer is not None
        optimizer = self._optimizer()
        variables = optimizer.side.variables()
        parameters = [Parameter(n, tuple(v.shape), str(v.dtype)) for n, v in variables.items()]
        policy = str(optimizer.settings.policy)
        self._id = self._writer.optimizer(optimizer.plain.__name__, parameters, policy=policy)
