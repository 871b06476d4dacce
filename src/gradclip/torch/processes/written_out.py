"""Any value as text that is the same in every process that has the same value.

A `repr` may hold an address in memory, and a pickle depends on the order of a set. So a value is
taken apart instead: the classes of a user's own thresholds and responses, and functions, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType

import numpy as np
from torch import Tensor

__all__ = ["written_out"]

_PLAIN = (str, bytes, bool, complex, type(None))
_DEEPEST = 20


def written_out(value: object) -> str:
    """Return text that tells two values apart, as far as their parts do.

    Args:
        value: anything; not mutated. A tensor is read, which waits for its device.
    """
    return _text(value, ())


def _text(value: object, owners: tuple[int, ...]) -> str:
    """Return the text of a value that these objects lead to: none of them is written again."""
    if type(value) in _PLAIN:
        return repr(value)
    if type(value) in (int, float):  # 1 and 1.0 are equal, as limits and as policies.
        return _number(value)
    if id(value) in owners or len(owners) > _DEEPEST:
        return "…"
    inside = (*owners, id(value))

    def joined(values: Iterable[object]) -> str:
        return ", ".join(_text(each, inside) for each in values)

    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, Mapping):
        pairs = sorted((_text(key, inside), _text(item, inside)) for key, item in value.items())
        return f"{name}({', '.join(f'{key}: {item}' for key, item in pairs)})"
    if isinstance(value, list | tuple):
        return f"{name}({joined(value)})"
    if isinstance(value, set | frozenset):
        return f"{name}({', '.join(sorted(_text(each, inside) for each in value))})"
    if isinstance(value, MethodType):
        return f"{_text(value.__func__, inside)} of {_text(value.__self__, inside)}"
    if isinstance(value, partial):
        parts: tuple[object, ...] = value.func, value.args, value.keywords
        return f"{name}({joined(parts)})"
    if isinstance(value, FunctionType):
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        found = joined([value.__defaults__, value.__kwdefaults__, *cells])
        return f"{value.__module__}.{value.__qualname__}({_code(value.__code__, inside)}, {found})"
    if isinstance(value, CodeType):
        return _code(value, inside)
    return f"{name}({_attributes(value, inside)})"


def _attributes(value: object, inside: tuple[int, ...]) -> str:
    """Return what an object of any class holds, by name."""
    found: dict[str, object] = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    if is_dataclass(value):
        for field in fields(value):
            if field.compare:
                found.setdefault(field.name, getattr(value, field.name))
            else:  # It is no part of what the object is.
                found.pop(field.name, None)
    return ", ".join(f"{name}={_text(found[name], inside)}" for name in sorted(found))


def _number(value: object) -> str:
    assert isinstance(value, int | float)
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value)) if whole else repr(value)


def _array(value: Tensor | np.ndarray | np.generic) -> str:
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized:
            return f"tensor({tuple(value.shape)}, {value.dtype})"
        value = value.detach().cpu()
        kind = str(value.dtype)
        found = np.asarray(value.resolve_conj().resolve_neg().double().tolist())
    else:
        found, kind = np.asarray(value), str(value.dtype)
    return f"array({found.shape}, {kind}, {zlib.crc32(np.ascontiguousarray(found).tobytes()):08x})"


def _cell(cell: object) -> object:
    try:
        return getattr(cell, "cell_contents", None)
    except ValueError:  # It was not filled yet.
        return None


def _code(code: CodeType, inside: tuple[int, ...]) -> str:
    """Return what a function does: of two lambdas in one line only this differs."""
    constants = ", ".join(_text(each, inside) for each in code.co_consts)
    return f"{zlib.crc32(code.co_code):08x}, {code.co_names}, {constants}"
