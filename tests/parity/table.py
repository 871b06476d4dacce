"""Writes docs/parity.md: how far each recipe is from its rivals and from its reference.

`make docs-parity` runs this; the bounds themselves are tests beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import torch

from gradclip.method.read import as_policy
from parity import test_optax, test_references, test_timm_keras
from stream import stream

HEAD = """# Parity

This table compares each recipe with the functions of other libraries, and with independent float64
references written from the papers (`tests/reference/`), on the gradients of `tests/stream.py`: 200
heavy-tailed steps with spikes and zeros. Each figure is the largest difference over all steps,
relative to the largest value of its step. `make docs-parity` writes the table.
[The divergences](divergences.md) list the intended differences.

| gradclip | rival | float64 | float32 |
| --- | --- | --- | --- |
"""

Row = tuple[str, str, float | None, float | None]


def _torch(dtype: type[np.floating], *, value: bool) -> float:
    """Return how far torch's own is from ours; it adds 1e-6 to the norm."""
    from gradclip.torch import clip_grad_norm_, clip_grad_value_

    theirs = torch.nn.utils.clip_grad_value_ if value else torch.nn.utils.clip_grad_norm_
    ours = clip_grad_value_ if value else clip_grad_norm_
    worst = 0.0
    for grads, _ in stream():
        if not all(np.isfinite(g).all() and g.any() for g in grads):
            continue
        pair = []
        for clip in (ours, theirs):
            values = [torch.from_numpy(g.astype(dtype)) for g in grads]
            params = [torch.nn.Parameter(torch.zeros_like(v)) for v in values]
            for p, v in zip(params, values, strict=True):
                p.grad = v
            clip(params, 1.0)
            pair.append(torch.cat([p.grad.double().ravel() for p in params if p.grad is not None]))
        worst = max(worst, float((pair[0] - pair[1]).abs().max() / pair[1].abs().max()))
    return worst


def _rows() -> Iterator[Row]:
    for value in (False, True):
        name = "clip_grad_value_" if value else "clip_grad_norm_"
        both = [_torch(dtype, value=value) for dtype in (np.float64, np.float32)]
        yield f"gradclip.torch.{name}", f"torch.nn.utils.{name}", both[0], both[1]
    for name, (policy, _) in test_optax.PAIRS.items():
        with jax.enable_x64(True):
            double = test_optax.largest_difference(name, np.float64)[0]
        single = test_optax.largest_difference(name, np.float32)[0]
        yield _text(policy), f"optax.{name}", double, single
    both = [
        test_timm_keras.largest_difference(dtype, 0.01, 1e-3)
        for dtype in (torch.float64, torch.float32)
    ]
    yield "agc", "timm.utils.adaptive_clip_grad", both[0], both[1]
    for backend in ("torch", "jax"):
        updates = test_timm_keras.keras_updates(backend)
        for name, (argument, limit, policy) in test_timm_keras.POLICIES.items():
            if "loose" not in name:
                single = test_timm_keras.keras_difference(updates, name)
                yield _text(policy), f"Keras {argument}={limit} on {backend}", None, single
    for text, (name, _) in test_references.PAIRS.items():
        double = test_references.largest_difference(text, test_references.reference_for(text))
        yield _text(text), f"tests/reference/{name}.py", double, None


def _text(policy: object) -> str:
    """Return the text form, which a cell of a table can hold."""
    return str(as_policy(policy)).replace("|", "\\|")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    lines = [f"| `{a}` | `{b}` | {_figure(c)} | {_figure(d)} |" for a, b, c, d in _rows()]
    print(HEAD + "\n".join(lines))
