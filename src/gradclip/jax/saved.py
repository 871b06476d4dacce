"""Saved states: how a state that was saved, maybe by an older version, becomes one of today."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from ..arrays import Array, Memory, Tree
from ..errors import PolicyError
from .state import ClipState

__all__ = ["restore"]

_OLD_NAMES = {"clipped_steps": "clipped", "skipped_steps": "skipped"}


def restore(saved: Tree, like: Tree) -> Tree:
    """Return a saved optimizer state in the form of a fresh one.

    Older states have other names in `ClipState`: clipped and skipped for clipped_steps and
    skipped_steps, and a nested memory. A checkpointer that compares names refuses them: restore
    the checkpoint without a target, and give the result to this function. A pickled state of
    before needs nothing: `update` takes it as it is.

    Args:
        saved: a state, whole or as a checkpointer gives it back without a target: dictionaries
            by field name, lists or dictionaries by index; not mutated.
        like: what `init` of the optimizer returns, or its shapes by `jax.eval_shape`.

    Returns:
        The saved values in the structure and the dtypes of `like`.

    Raises:
        PolicyError: a part is missing, or an array has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradclip.jax import clip
        >>> state = clip("norm:1.0").init(jnp.zeros(2))
        >>> saved = state._asdict() | {"steps": 3}
        >>> int(restore(saved, state).steps)
        3
    """
    return _restored(saved, like, "saved")


def _restored(saved: Tree, like: Tree, where: str) -> Tree:
    if isinstance(like, ClipState):
        return _clip_state(saved, like, where)
    names: Sequence[str] | None = getattr(like, "_fields", None)
    make: Callable[..., Tree] = type(like)
    if isinstance(like, tuple) and names is not None:
        parts = [_part(saved, name, i, where) for i, name in enumerate(names)]
        each = zip(parts, like, names, strict=True)
        return make(*(_restored(x, y, f"{where}.{name}") for x, y, name in each))
    if isinstance(like, (tuple, list)):
        parts = [_part(saved, str(i), i, where) for i in range(len(like))]
        each = enumerate(zip(parts, like, strict=True))
        return make(_restored(x, y, f"{where}[{i}]") for i, (x, y) in each)
    if isinstance(like, Mapping):
        parts = {name: _part(saved, name, None, where) for name in like}
        return make({k: _restored(parts[k], like[k], f"{where}.{k}") for k in like})
    if like is None:
        return None
    if hasattr(like, "shape"):
        return _array(saved, like, where)
    if jax.tree.structure(saved) != jax.tree.structure(like):
        raise PolicyError.of(where, type(saved).__name__, f"give a {type(like).__name__}")
    return jax.tree.map(lambda x, y: _array(x, y, where), saved, like)


def _clip_state(saved: Tree, like: ClipState, where: str) -> ClipState:
    parts = [_part(saved, name, i, where) for i, name in enumerate(ClipState._fields)]
    memory = list(_memory(parts[0]))
    if len(memory) != len(like.memory):
        remedy = f"the policy remembers {len(like.memory)}: restore with the policy that was saved"
        raise PolicyError.of(f"{where}.memory", f"{len(memory)} arrays", remedy)
    each = zip((memory, *parts[1:]), like, ClipState._fields, strict=True)
    return ClipState(*(_restored(x, y, f"{where}.{name}") for x, y, name in each))


def _memory(memory: Memory) -> Iterator[Array]:
    """Yield the arrays of a memory, flat or in the nested form of before, in JAX's order."""
    for layer in _items(memory):
        if not isinstance(layer, (Mapping, list, tuple)):
            yield layer
            continue
        for stage in _items(layer):
            if isinstance(stage, Mapping) and "inner" in stage:
                yield from _memory(stage["inner"])
                stage = stage.get("source")
            yield from jax.tree.leaves(stage)


def _items(nested: Memory) -> Iterable[Memory]:
    """Return the items of a list; some checkpointers make a dictionary by index of it."""
    if nested is None:
        return []
    if isinstance(nested, Mapping):
        return [nested[key] for key in sorted(nested, key=int)]
    return nested


def _part(saved: Tree, name: str, index: int | None, where: str) -> Tree:
    """Return a part of what was saved, by its name or its place."""
    if isinstance(saved, Mapping):
        for key in (name, _OLD_NAMES.get(name), index):
            if key is not None and key in saved:
                return saved[key]
    elif index is not None and isinstance(saved, (tuple, list)) and index < len(saved):
        return saved[index]
    raise PolicyError.of(where, type(saved).__name__, f"it holds no {name}: another optimizer's?")


def _array(saved: Array, like: Array, where: str) -> Array:
    if jnp.shape(saved) != like.shape:
        remedy = f"the new state has {like.shape}: was it saved for other parameters?"
        raise PolicyError.of(where, f"an array of shape {jnp.shape(saved)}", remedy)
    return jnp.asarray(saved).astype(like.dtype)
