"""How too many skips in a row stop a run, from inside of a compiled step or on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import Norms, Scalar
from ..errors import NonFiniteError

__all__ = ["stop_if_over", "watched"]

Count = Scalar


@jax.custom_batching.custom_vmap
def watched(in_a_row: Count, recent: Norms, max_skips: Count) -> Count:
    """Return in_a_row; stop the run, from inside the step, if it is over max_skips.

    A callback with an effect takes every call of the compiled step off JAX's fast path, at some
    10 µs for each array that goes in or out. A pure one does not, but runs on one device, and
    the others would wait for it for ever.
    """

    def ask(*about: jax.Array) -> jax.Array:
        if jax.device_count() > 1:
            jax.debug.callback(stop_if_over, *about, partitioned=True)
            return about[0]
        return jax.pure_callback(stop_if_over, jax.ShapeDtypeStruct((), jnp.int32), *about)

    over = in_a_row > max_skips
    return jax.lax.cond(over, ask, lambda *about: about[0], in_a_row, recent, max_skips)


@watched.def_vmap
def _worst_watched(
    _size: int, batched: list[bool], in_a_row: Count, recent: Norms, max_skips: Count
) -> tuple[Count, bool]:
    """Look at the worst of many: vmap alone would call the host at every step."""
    if not batched[0]:
        return watched(in_a_row, recent, max_skips), False
    worst = jnp.argmax(in_a_row)
    most = watched(in_a_row[worst], recent[worst] if batched[1] else recent, max_skips)
    return in_a_row.at[worst].set(most), True


def stop_if_over(in_a_row: Count, recent: Norms, max_skips: Count) -> Count:
    """Raise if there were too many, else return in_a_row."""
    count = int(in_a_row)
    if count <= int(max_skips):
        return in_a_row
    known = np.asarray(recent)[:count][::-1]
    norms = ", ".join(f"{float(norm):.4g}" for norm in known)
    updates, lasts = ("update", "norm") if count == 1 else ("updates", "norms")
    verb = "was" if count == 1 else "were"
    raise NonFiniteError(
        f"{count} {updates} in a row {verb} skipped (max_skips={int(max_skips)}); "
        f"the last {lasts} {'was' if len(known) == 1 else 'were'} {norms}"
    )
