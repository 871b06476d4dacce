"""What a loss scaler has multiplied the gradients by."""

from __future__ import annotations

from typing import NamedTuple

from torch.amp.grad_scaler import GradScaler, OptState

from ...errors import PolicyError

__all__ = ["Scaled", "refuse_scaled_grad", "scaled_by"]


class Scaled(NamedTuple):
    """What a loss scaler has done.

    Attributes:
        factor: what the loss was multiplied by; 1 without a scaler.
        grad: what `.grad` still is multiplied by: 1 after `unscale_`.
    """

    factor: float = 1.0
    grad: float = 1.0


def scaled_by(scaler: GradScaler | None) -> Scaled:
    """Return what a scaler has multiplied the loss by; reads the device.

    Raises:
        PolicyError: it is not a scaler, or has not scaled a loss yet.
    """
    if scaler is None:
        return Scaled()
    if not isinstance(scaler, GradScaler):
        raise PolicyError.of("grad_scaler", scaler, "give a torch.amp.GradScaler")
    if not scaler.is_enabled():
        return Scaled()
    if scaler._scale is None:
        remedy = "it has not scaled a loss yet: scaler.scale(loss).backward() comes before"
        raise PolicyError.of("grad_scaler", scaler, remedy)
    factor = float(scaler.get_scale())
    stages = [state["stage"] for state in scaler._per_optimizer_states.values()]
    return Scaled(factor, 1.0 if OptState.UNSCALED in stages else factor)


def refuse_scaled_grad(scaled: Scaled) -> None:
    """Refuse to write gradients that the scaler's step would divide once more.

    Raises:
        PolicyError: no optimizer of the scaler was unscaled since its last update.
    """
    if scaled.grad != 1.0:
        remedy = (
            "call scaler.unscale_(optimizer) before clip_(): scaler.step(optimizer) would divide "
            "the clipped .grad by the scale"
        )
        raise PolicyError.of("grad_scaler", f"a scale of {scaled.grad:g} in .grad", remedy)
