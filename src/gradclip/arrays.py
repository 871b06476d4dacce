"""The named types of the arrays that pass through a step.

NumPy, PyTorch and JAX share no static array type, so each name below stands for `Any`: it tells the
reader which array is meant, and what its shape is.
"""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = [
    "Array",
    "Cosines",
    "Factors",
    "Flag",
    "Memory",
    "Namespace",
    "Norms",
    "Scalar",
    "Sizes",
    "State",
    "Tree",
    "Values",
]

Array: TypeAlias = Any
"""An array of any library, of any shape."""
Namespace: TypeAlias = Any
"""A namespace of the Python array API standard, such as `numpy`."""
Norms: TypeAlias = Array
"""Norms of the parts that are measured, shape (parts,), float64 where there is one."""
Sizes: TypeAlias = Array
"""Numbers of values of the parts that are measured, shape (parts,), as floats."""
Factors: TypeAlias = Array
"""What each part is multiplied by, shape (parts,) or (); exactly 1 changes no bit."""
Cosines: TypeAlias = Array
"""Cosines between gradients before and after, shape (parts,); exactly 1 where nothing changed."""
Values: TypeAlias = Array
"""The values of one gradient, in its own shape."""
Scalar: TypeAlias = Array
"""One number, shape (), on the host or on a device."""
Flag: TypeAlias = Array
"""One boolean, shape (), on the host or on a device."""
State: TypeAlias = dict[str, Array]
"""What one threshold or one wrapper remembers: arrays by name, dictionaries of them nested."""
Memory: TypeAlias = Any
"""What a whole plan remembers: lists and dictionaries, nested, of arrays."""
Tree: TypeAlias = Any
"""A tree of JAX: containers, nested, of arrays."""
