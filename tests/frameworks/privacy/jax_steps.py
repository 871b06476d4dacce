"""The clipped sum of one batch by jax-privacy and by gradclip, on the same net."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax_privacy import clipped_grad

import gradclip.jax
import gradclip.torch
from gradclip import by_norm

from .models import BATCH, Case, Params, losses, made

__all__ = ["Difference", "difference"]


class Difference(NamedTuple):
    """The largest differences, relative to the largest value.

    Attributes:
        grads: of the sum of the clipped gradients.
        norms: of the norms of the samples before clipping.
        clipped: how many samples gradclip changed.
    """

    grads: float
    norms: float
    clipped: int


def difference(case: Case, ours: str) -> Difference:
    """Return the difference between jax-privacy and gradclip on "jax" or "torch"."""
    net = made(case.make)
    x, y = case.batch()
    with jax.enable_x64(True):
        params = {name: jnp.asarray(p.detach().numpy()) for name, p in net.named_parameters()}
        data = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
        limit = _median(case, params, data)
        theirs = clipped_grad(
            case.loss,
            l2_clip_norm=limit,
            batch_argnums=(1, 2),
            keep_batch_dim=False,
            return_grad_norms=True,
        )
        wanted, aux = theirs(params, *data)
        if ours == "jax":
            mine = gradclip.jax.per_sample(case.loss, by_norm(limit), reduction="sum")
            grads, result = mine(params, *data)
        else:
            with gradclip.torch.per_sample(net, by_norm(limit), "sum") as clipper:
                losses(net(x), y).sum().backward()
                result = clipper.clip_()
            grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert grads.keys() == wanted.keys()
        largest = max(float(abs(each).max()) for each in wanted.values())
        far = max(float(abs(np.asarray(grads[n]) - np.asarray(wanted[n])).max()) for n in wanted)
        norms = np.asarray(result.sample_norms), np.asarray(aux.grad_norms)
        apart = float((abs(norms[0] - norms[1]) / norms[1]).max())
        return Difference(far / largest, apart, int(result.clipped))


def _median(case: Case, params: Params, data: tuple[Any, Any]) -> float:
    """Return a limit that clips half of the samples."""
    rows = jax.vmap(jax.grad(case.loss), (None, 0, 0))(params, *data)
    squares = [(g.reshape(BATCH, -1) ** 2).sum(1) for g in rows.values()]
    return float(jnp.median(jnp.sqrt(sum(squares))))
