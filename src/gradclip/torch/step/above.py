"""A framework above an optimizer's step that clips by itself: said once, when that step is seen.

Nothing is patched: the callers of the first step tell what the framework was set to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

from ...errors import GradclipWarning

__all__ = ["ask_once"]

_FAR = 200


class _Caller(NamedTuple):
    """A function of a framework that makes the steps.

    Attributes:
        modules: what the name of its module begins with.
        name: of the function.
        clips: returns by which argument the framework clips, from the function's variables.
    """

    modules: tuple[str, ...]
    name: str
    clips: Callable[[Mapping[str, Any]], str | None]


def _by_lightning(seen: Mapping[str, Any]) -> str | None:
    trainer = getattr(seen.get("model"), "_trainer", None)
    limit = getattr(trainer, "gradient_clip_val", None)
    return f"Trainer(gradient_clip_val={limit!r})" if limit else None


def _by_trainer(seen: Mapping[str, Any]) -> str | None:
    trainer = seen.get("self")
    limit = getattr(getattr(trainer, "args", None), "max_grad_norm", None)
    # gradclip's own callback puts another function in the place of the Trainer's clipping.
    is_replaced = "clip_grad_norm_" in vars(getattr(trainer, "accelerator", None) or object)
    return None if is_replaced or not limit else f"TrainingArguments(max_grad_norm={limit!r})"


_PRECISION = ("lightning.pytorch.plugins.precision", "pytorch_lightning.plugins.precision")
_CALLERS = (
    _Caller(_PRECISION, "optimizer_step", _by_lightning),
    _Caller(("transformers.trainer",), "_run_epoch", _by_trainer),
    _Caller(("transformers.trainer",), "_inner_training_loop", _by_trainer),
)


def ask_once(*, asks_at_all: bool) -> Callable[[FrameType], None]:
    """Return what is to be called with the frame of each step; the first one is looked at.

    Args:
        asks_at_all: False where somebody else sees what the framework does.
    """
    asks = [True] * asks_at_all

    def ask(frame: FrameType) -> None:
        if asks:
            asks.clear()
            _warn(frame)

    return ask


def _warn(frame: FrameType) -> None:
    """Warn if a framework that makes this step has clipped its gradients."""
    caller: FrameType | None = frame
    for _ in range(_FAR):
        if caller is None:
            return
        for known in _CALLERS:
            if caller.f_code.co_name == known.name and _is_in(caller, known.modules):
                setting = known.clips(caller.f_locals)
                if setting is not None:
                    text = (
                        f"{setting} clips the gradients before gradclip does, and the lower limit "
                        "wins: turn that off"
                    )
                    warnings.warn(text, GradclipWarning, stacklevel=2)
                return
        caller = caller.f_back


def _is_in(frame: FrameType, modules: tuple[str, ...]) -> bool:
    return frame.f_globals.get("__name__", "").startswith(modules)
