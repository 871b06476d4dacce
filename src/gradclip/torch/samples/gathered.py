"""The gradients of all samples of one batch, by parameter, from what was kept of its passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import PolicyError
from .call import tensors_in
from .convolution import Convolution
from .forms import Form, Outer, Several, joined, size_of, written
from .ghost import refuse_no_batch
from .kept import Kept, Use
from .parts import summing
from .vmapped import vmapped

__all__ = ["Gathered", "gather", "refuse_other_batch", "refuse_other_sum"]

_SEVERAL = (
    "two backward passes came before this call: call accumulate() after each; with checkpoints, "
    "give use_reentrant=False"
)


@dataclass(frozen=True)
class Gathered:
    """The gradients of the samples of one batch.

    Attributes:
        batch: B, how many samples there are.
        forms: by the parameter's index; None where a parameter took no part.
        ran: by way, the names of the modules or parameters that went that way.
        eps: of the coarsest dtype in which anything was kept.
        device: of what was kept.
    """

    batch: int
    forms: list[Form | None]
    ran: dict[str, list[str]]
    eps: float
    device: torch.device


def gather(kept: Kept, index: Mapping[Tensor, int], names: Sequence[str]) -> Gathered:
    """Return the gradients of the samples since the last `clear`.

    Args:
        kept: loses its uses, and is paused while modules run again.
        index: the place of each trained parameter.
        names: the names of these parameters.

    Raises:
        PolicyError: nothing was kept, or of more than one backward pass; a module has another
            batch than the first, or cannot be taken apart; an input was overwritten.
    """
    uses = kept.take()
    if not uses:
        remedy = "run the model forward and loss.backward() first, after per_sample(model, …)"
        raise PolicyError.of("backward passes", 0, remedy)
    if len(kept.passes) > 1:
        raise PolicyError.of("backward passes", len(kept.passes), _SEVERAL)
    batch = _batch(uses)
    kinds = {t.dtype for use in uses for t in tensors_in((use.call.args, use.call.grads))}
    eps = max(torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)
    device = tensors_in(uses[0].call.grads)[0].device
    found: list[list[Form]] = [[] for _ in names]
    ran: dict[str, list[str]] = {}
    kept.paused = True
    uses.reverse()  # The last one is taken first, and is then free.
    try:
        while uses:
            use = uses.pop()
            way, forms = _of_use(use)
            if use.unit.name not in ran.setdefault(way, []):
                ran[way].append(use.unit.name)
            own = dict(use.unit.module.named_parameters())
            for name, form in forms.items():
                if own[name] not in index:
                    remedy = "it was made, or is trained, since per_sample(): make a new clipper"
                    raise PolicyError.of("parameter", f"{use.unit.name}.{name}", remedy)
                found[index[own[name]]].append(form)
    finally:
        kept.paused = False
    joint: list[Form | None] = []
    for name, forms in zip(names, found, strict=True):
        joint.append(_settled(joined(forms)) if forms else None)
        forms.clear()
        if isinstance(joint[-1], Several):
            ran.setdefault("rows", []).append(name)
    return Gathered(batch, joint, ran, eps, device)


def _settled(form: Form) -> Form:
    """Write out the gradients where they are smaller than what they are made of."""
    if isinstance(form, Outer) and form.prefers_rows:
        return written(form, summing(form.left, form.right))
    if isinstance(form, Convolution) and form.prefers_rows:
        kept = form.x[:1].numel() + form.g[:1].numel()
        if form.shape.numel() <= kept:
            return written(form, summing(form.x, form.g))
    return form


def refuse_other_batch(uses: Sequence[Use], batch: int, why: str) -> None:
    """Refuse a call whose input does not begin with the batch.

    Args:
        uses: not mutated.
        batch: how many samples there are.
        why: where this number is from.

    Raises:
        PolicyError: names the module.
    """
    for use in uses:
        size = use.first_axis
        if size != batch:
            remedy = (
                f"the first axis of its input must be the batch, of {batch} {why}: expand what all "
                "samples share, such as positions, to (batch, …), and give batch_first=True"
            )
            raise PolicyError.of(f"{use.unit.name}.input.shape[:1]", size, remedy)


def _batch(uses: list[Use]) -> int:
    """Return how many samples there are, on which all uses must agree."""
    for use in uses:
        if use.unit.ghost is not None:
            refuse_no_batch(use.unit.name, use.unit.module, use.first)
        use.refuse_overwritten()
    batch = uses[0].first_axis
    refuse_other_batch(uses, batch, f"as for {uses[0].unit.name!r}")
    return batch


def _of_use(use: Use) -> tuple[str, dict[str, Form]]:
    """Return the way that was taken, and the forms of the unit's trained parameters."""
    unit = use.unit
    if unit.ghost is not None:
        return "ghost", unit.ghost(unit.module, use.call)
    # torch.func has no rule for recurrent layers.
    in_turn = any(isinstance(part, nn.RNNBase) for part in unit.module.modules())
    try:
        forms = vmapped(unit.module, use.call, in_turn=in_turn)
    except Exception as fault:  # The module may be anybody's code.
        raise _not_apart(unit.name, unit.module, fault) from fault
    return ("loop" if in_turn else "vmap"), forms


def _not_apart(name: str, module: nn.Module, fault: Exception) -> PolicyError:
    """Return the error about a module that cannot run on one sample alone."""
    kind = type(module).__name__
    first = str(fault).strip().partition("\n")[0]
    remedy = (
        "no formula knows this module, and running the module on one sample failed: have its "
        "parameters in modules of their own, such as nn.Linear, without dropout beside them "
        f"({first})"
    )
    return PolicyError.of("module", f"{name} ({kind})", remedy)


def refuse_other_sum(
    gathered: Gathered, parameters: Sequence[Tensor], names: Sequence[str]
) -> bool:
    """Compare the sum of the samples' gradients with what the backward pass left in `.grad`.

    Reads the device.

    Returns:
        Whether there was something to compare: samples, and sums that are finite.

    Raises:
        PolicyError: they differ by more than rounding; names the parameter.
    """
    ones = torch.ones(gathered.batch, dtype=torch.float64, device=gathered.device)
    off, size = [], []
    for form, parameter in zip(gathered.forms, parameters, strict=True):
        total = torch.zeros_like(parameter, dtype=torch.float64)
        total = total if form is None else form.weighted(ones).double()
        grad = total * 0 if parameter.grad is None else parameter.grad.double()
        off.append((grad - total).norm())
        size.append(ones[:0].sum() if form is None else size_of(form).sum())
    apart, sizes = torch.stack(off), torch.stack(size)
    eps = max(gathered.eps, *(torch.finfo(p.dtype).eps for p in parameters))
    wrong = ((apart > eps**0.5 * sizes) & apart.isfinite()).tolist()
    for name, each in zip(names, wrong, strict=True):
        if each:
            remedy = (
                "the gradients of the samples do not add up to its .grad: clear .grad before "
                "backward(), use the parameter only through its module, and let the module draw "
                "no random numbers"
            )
            raise PolicyError.of("parameter", name, remedy)
    return gathered.batch > 0 and bool(torch.isfinite(apart).all())
