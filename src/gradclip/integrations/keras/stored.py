"""Plain nested data in the files of Keras, which hold arrays by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import GradclipWarning
from .side import Store

__all__ = ["load_nested", "own_entries", "save_nested"]

_PREFIX = "gradclip"


def own_entries(store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the optimizer itself has saved, and what `save_nested` has."""
    both: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in _names(store):
        both[name.startswith(_PREFIX)][name] = store[name]
    return both


def _names(store: Store) -> Iterable[str]:
    return list(store.keys())


def save_nested(data: object, store: Store) -> None:
    """Save dictionaries, lists and tuples, nested, of arrays and plain values."""
    arrays: list[np.ndarray] = []
    text = json.dumps(_written(data, arrays))
    store[_PREFIX] = np.frombuffer(text.encode(), np.uint8)
    for i, array in enumerate(arrays):
        store[f"{_PREFIX}_{i}"] = array


def load_nested(store: Store) -> Any:
    """Return what `save_nested` saved; None, after a warning, if there is nothing."""
    if _PREFIX not in _names(store):
        text = "the saved optimizer has no memory of a clipper: the clipper begins anew"
        warnings.warn(text, GradclipWarning, stacklevel=2)
        return None
    text = np.asarray(store[_PREFIX]).astype(np.uint8).tobytes().decode()
    return _read(json.loads(text), store)


def _written(data: object, arrays: list[np.ndarray]) -> object:
    if isinstance(data, dict):
        return {"dict": [[key, _written(value, arrays)] for key, value in data.items()]}
    if isinstance(data, (list, tuple)):
        return {type(data).__name__: [_written(value, arrays) for value in data]}
    if isinstance(data, np.ndarray):
        arrays.append(data)
        return {"array": len(arrays) - 1}
    return {"plain": data}


def _read(data: dict[str, Any], store: Store) -> Any:
    ((kind, value),) = data.items()
    if kind == "dict":
        return {key: _read(part, store) for key, part in value}
    if kind == "list":
        return [_read(part, store) for part in value]
    if kind == "tuple":
        return tuple(_read(part, store) for part in value)
    return np.asarray(store[f"{_PREFIX}_{value}"]) if kind == "array" else value
