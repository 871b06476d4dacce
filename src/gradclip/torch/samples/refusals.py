"""What mixes the samples of a batch, or hides their gradients, is refused before the first step."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ...errors import PolicyError
from ..processes.placements import is_sharded

__all__ = ["refuse_model"]


def refuse_model(model: nn.Module) -> None:
    """Refuse a model in which one sample's gradient depends on the other samples.

    Raises:
        PolicyError: names the module and the remedy.
    """
    for name, module in model.named_modules():
        remedy = _remedy(module)
        if remedy is not None:
            kind = type(module).__name__
            raise PolicyError.of("model", f"{name or kind} ({kind})", remedy)
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) or parameter.is_complex():
            what = "sharded over processes" if is_sharded(parameter) else "complex"
            remedy = f"the parameter is {what}, and per-sample norms are of whole real ones"
            raise PolicyError.of("model", name, remedy)


def _remedy(module: nn.Module) -> str | None:
    """Return what to do in place of a module; None if the module treats samples apart."""
    if isinstance(module, _BatchNorm) and not isinstance(module, _InstanceNorm):
        return "its statistics mix the samples of a batch: use torch.nn.GroupNorm"
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        return "its running statistics mix samples: give track_running_stats=False"
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "give the module inside: processes that share a batch are not supported"
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return "scale_grad_by_freq counts words over the batch: give scale_grad_by_freq=False"
    if isinstance(module, nn.Embedding) and module.sparse:
        return "the clipped sum is dense: give sparse=False"
    if isinstance(module, nn.EmbeddingBag) and module.scale_grad_by_freq:
        return "scale_grad_by_freq counts words over the batch: give scale_grad_by_freq=False"
    return None
