"""A bound with a number of its own for each value: an array that does not change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeGuard

import numpy as np

from ..arrays import Array, Namespace, Values
from ..errors import PolicyError

__all__ = ["Table", "tables"]

_MOST = 100_000


@dataclass(frozen=True, repr=False)
class Table:
    """An array of numbers that can be compared, hashed, copied, pickled and written.

    Args:
        shape: of the array, which has at least one axis and one value.
        values: its numbers, the last axis first; none is NaN.

    Raises:
        PolicyError: see `of`.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, argument: str, value: object) -> Table:
        """Return the table of an array of any library, or of numbers in lists.

        Raises:
            PolicyError: it is not an array of real numbers, it has no value or more than 100,000,
                or a value is NaN.
        """
        if isinstance(value, Table):
            return value
        try:
            # Python's own numbers: NumPy lacks some types, and does not read a device.
            plain = value.tolist() if _is_small_array(value) else value
            array = np.asarray(plain)
        except (TypeError, ValueError, OverflowError, RuntimeError, RecursionError):
            array = np.zeros((), np.bool_)
        if array.dtype.kind not in "fiu" or array.ndim == 0:
            raise PolicyError.of(argument, value, "give a number, or an array of real numbers")
        if not 0 < array.size <= _MOST:
            remedy = f"give 1 to {_MOST} values: an axis of length 1 stands for any length"
            raise PolicyError.of(argument, f"an array of shape {array.shape}", remedy)
        wide = array.astype(np.float64) + 0.0  # Negative zero becomes zero.
        if np.isnan(wide).any():
            raise PolicyError.of(argument, value, "NaN is not a limit; give real numbers")
        return cls(array.shape, tuple(wide.ravel().tolist()))

    def __repr__(self) -> str:
        """Return the numbers in tuples, as a user may write them."""
        return repr(self.nested)

    @property
    def array(self) -> np.ndarray:
        """The numbers as an array of float64."""
        return np.asarray(self.values).reshape(self.shape)

    @property
    def nested(self) -> tuple[object, ...]:
        """The numbers in tuples, one level for each axis."""
        found: tuple[object, ...] = self.values
        for size in self.shape[:0:-1]:
            found = tuple(found[i : i + size] for i in range(0, len(found), size))
        return found

    def like(self, values: Values, xp: Namespace) -> Array:
        """Return the table in the dtype, and on the device, of an array.

        A finite number that the dtype cannot hold becomes the nearest number that it can.
        """
        most = float(xp.finfo(values.dtype).max)
        # Without NumPy, which torch cannot compile into a graph.
        held = [v if math.isinf(v) else min(max(v, -most), most) for v in self.values]
        # An array of JAX that is being traced has no device.
        place = {} if xp.__name__.startswith("jax") else {"device": values.device}
        return xp.reshape(xp.asarray(held, dtype=values.dtype, **place), self.shape)

    def refuse_other_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a gradient to which the table does not broadcast.

        Raises:
            PolicyError: names the gradient and both shapes.
        """
        pairs = zip(self.shape[::-1], shape[::-1], strict=False)
        if len(self.shape) > len(shape) or any(a not in (1, b) for a, b in pairs):
            remedy = (
                f"the gradient {name} has the shape {shape}, to which the bound does not "
                "broadcast: give others a policy of their own, by name"
            ).replace("  ", " ")
            raise PolicyError.of("bound", f"an array of shape {self.shape}", remedy)


def _is_small_array(value: object) -> TypeGuard[np.ndarray]:
    """Return whether a value is an array of any library that a table may hold."""
    size = math.prod(getattr(value, "shape", ()))
    return callable(getattr(value, "tolist", None)) and size <= _MOST


def tables(part: object) -> Iterator[Table]:
    """Yield the tables in a threshold, and in the thresholds in it."""
    if isinstance(part, Table):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from tables(getattr(part, field.name))
