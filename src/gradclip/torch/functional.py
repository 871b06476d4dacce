"""Drop-ins for `torch.nn.utils`: the same signatures, without the defects.

Every difference to torch is in the table "divergences" of the docs, with its reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._publish import publish
from ..arrays import Scalar
from ..checks import number
from ..engine.one_norm import plain_factor
from ..errors import GradclipWarning, NonFiniteError, PolicyError
from ..method.measure import combine
from ..method.response import Rescale
from ..method.threshold import Limits
from .processes.layout import GroupsLike
from .processes.making import agree_to_call
from .processes.placements import any_sharded, is_sharded
from .processes.sharded import Sharded, gradients
from .tensors import at_once
from .tensors.gather import with_gradients
from .tensors.gradients import Gradients

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]

Tensors = Tensor | Iterable[Tensor]


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float | Tensor,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,  # noqa: ARG001 - torch's signature
    *,
    groups: GroupsLike | None = None,
    verify: bool = False,
) -> Tensor:
    """Clip the norm of all gradients together, in place.

    g if ‖g‖ ≤ max_norm, else g·max_norm/‖g‖.

    Args:
        parameters: a tensor or an iterable of tensors; their `.grad` is mutated. A parameter
            listed twice counts once.
        max_norm: the largest norm that stays as it is, ≥ 0. Under `torch.compile` a tensor of one
            value does not compile again when it changes; there, and on an accelerator, nobody
            looks at it, and a negative one counts as 0.
        norm_type: p > 0 of the p-norm, or inf.
        error_if_nonfinite: raise, with the gradients untouched, if the norm is inf or NaN.
        foreach: accepted as torch has it, and not needed: the tensors decide what runs.
        groups: processes over which all of these are spread, besides DTensors' own meshes, such
            as the stages of a pipeline: a ProcessGroup, one dimension of a DeviceMesh, or a list.
        verify: have the processes, all of which give this, compare what they ask for, before
            anything else: those of the meshes and groups, without them those of the job. Without
            groups they must give the same list of tensors.

    Returns:
        The norm before clipping, shape (), float32, or float64 if a gradient is float64; inf where
        that dtype cannot hold the norm, which has clipped rightly all the same.

    Raises:
        PolicyError: max_norm is negative or NaN, or norm_type is not positive; with verify, in all
            processes: they ask for different things.
        LayoutError: with verify, a process did not come.
        NonFiniteError: a RuntimeError; the norm is not finite and error_if_nonfinite is set.

    Numerics: accumulated in float64; no ε is added, so a gradient at the limit keeps its bits.
    A norm that overflowed because of an inf gives 0 and NaN as torch does.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> float(clip_grad_norm_([w], 1.0))
        5.0
        >>> w.grad
        tensor([0.6000, 0.8000])

    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if groups is None and not verify and not torch.compiler.is_compiling():
        total = _at_once(parameters, max_norm, norm_type)
        if total is not None:
            return total
    if verify:
        asked = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "error_if_nonfinite": error_if_nonfinite,
        }
        agree_to_call("clip_grad_norm_", parameters, groups, asked)
    with torch.no_grad():
        grads = _gradients(parameters, "clip_grad_norm_", groups, level=3)
        limit = _limit("max_norm", max_norm, grads)
        total = _total(grads, norm_type)
        _refuse_nonfinite(grads, total, norm_type, error_if_nonfinite)
        _rescale(grads, total, limit)
        return _returned(total, grads)


def _at_once(params: Sequence[Tensor], max_norm: float | Tensor, norm_type: float) -> Tensor | None:
    """Do what `clip_grad_norm_` does in the usual case; return None, with nothing done, in others.

    Here the total norm is finite, each parameter has a gradient, and each is listed once.
    """
    if not isinstance(max_norm, float) and (type(max_norm) is not int or max_norm > _WHOLE):
        return None
    if not max_norm >= 0 or norm_type not in _ORDERS:
        return None
    grads = at_once.gradients(params)
    if not grads:
        return None
    done = at_once.clip(grads, norm_type, max_norm)
    return None if done is None else _as_tensor(done.total, double=done.has_double)


@torch.no_grad()
def clip_grad_value_(
    parameters: Tensors,
    clip_value: float | Tensor,
    foreach: bool | None = None,  # noqa: ARG001 - torch's signature
) -> None:
    """Clamp every value of the gradients to [-clip_value, clip_value], in place.

    Args:
        parameters: a tensor or an iterable of tensors; their `.grad` is mutated.
        clip_value: the largest magnitude, ≥ 0; a tensor as in `clip_grad_norm_`.
        foreach: accepted as torch has it, and not needed.

    Raises:
        PolicyError: clip_value is negative or NaN, or a gradient is complex.

    Numerics: values inside keep their bits; inf becomes the bound, NaN stays NaN.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> w.grad = torch.tensor([3.0, -0.5])
        >>> clip_grad_value_([w], 1.0)
        >>> w.grad
        tensor([ 1.0000, -0.5000])

    Source: Mikolov 2012, PhD thesis, section 3.2.
    """
    grads = _gradients(parameters, "clip_grad_value_")
    bound = _limit("clip_value", clip_value, grads)
    grads.clamp_all(Limits(-bound, bound))


@torch.no_grad()
def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,  # noqa: ARG001 - torch's signature
    *,
    groups: GroupsLike | None = None,
    verify: bool = False,
) -> Tensor:
    """Return the norm of all tensors together.

    Args:
        tensors: a tensor or an iterable of tensors; not mutated.
        norm_type: p > 0 of the p-norm, or inf.
        error_if_nonfinite: raise if the norm is inf or NaN.
        foreach: accepted as torch has it, and not needed.
        groups: processes over which all of these are spread, besides DTensors' own meshes, such
            as the stages of a pipeline: a ProcessGroup, one dimension of a DeviceMesh, or a list.
        verify: have the processes, all of which give this, compare what they ask for, before
            anything else: those of the meshes and groups, without them those of the job. Without
            groups they must give the same list of tensors.

    Returns:
        The norm, shape (), float32, or float64 if a tensor is float64; inf where that dtype cannot
        hold the norm.

    Raises:
        PolicyError: norm_type is not positive; with verify, in all processes: they ask for
            different things.
        LayoutError: with verify, a process did not come.
        NonFiniteError: a RuntimeError; the norm is not finite and error_if_nonfinite is set.

    Numerics: accumulated in float64; safe from overflow and underflow.

    Example:
        >>> import torch
        >>> float(get_total_norm([torch.tensor([3.0]), torch.tensor([4.0])]))
        5.0
    """
    values = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if verify:
        asked = {"norm_type": norm_type, "error_if_nonfinite": error_if_nonfinite}
        agree_to_call("get_total_norm", values, groups, asked)
    grads = gradients(values, groups, values) or Gradients(values, [""] * len(values))
    total = _total(grads, norm_type)
    _refuse_nonfinite(grads, total, norm_type, error_if_nonfinite)
    return _returned(total, grads)


@torch.no_grad()
def clip_grads_with_norm_(
    parameters: Tensors,
    max_norm: float | Tensor,
    total_norm: Tensor,
    foreach: bool | None = None,  # noqa: ARG001 - torch's signature
) -> None:
    """Scale the gradients by max_norm/total_norm, if that is under 1, in place.

    Args:
        parameters: a tensor or an iterable of tensors; their `.grad` is mutated.
        max_norm: the largest norm that stays as it is, ≥ 0. Under `torch.compile` a tensor of one
            value does not compile again when it changes; there, and on an accelerator, nobody
            looks at it, and a negative one counts as 0.
        total_norm: shape (); the norm that the gradients have, from `get_total_norm`.
        foreach: accepted as torch has it, and not needed.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Numerics: a total_norm at or under max_norm leaves every bit.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> w.grad = torch.tensor([2.0])
        >>> clip_grads_with_norm_([w], 1.0, torch.tensor(2.0))
        >>> w.grad
        tensor([1.])

    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    grads = _gradients(parameters, "clip_grads_with_norm_")
    limit = _limit("max_norm", max_norm, grads)
    total = torch.as_tensor(total_norm).detach()
    if is_sharded(total):  # From torch's own get_total_norm.
        total = total.full_tensor()
    _rescale(grads, total.double().cpu().numpy() if grads.host else total, limit)


Grads = Gradients | Sharded
_WHOLE = 2**53  # Up to this, a whole number is a float.
_ORDERS = (2.0, math.inf)
_MOST = torch.finfo(torch.float32).max


def _gradients(
    parameters: Tensors, name: str, groups: GroupsLike | None = None, *, level: int = 4
) -> Grads:
    """Return the gradients that there are, each once; `level` is where a warning points to."""
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not given and not torch.compiler.is_compiling():
        text = f"{name} was given no parameters: a generator that was already used up?"
        warnings.warn(text, GradclipWarning, stacklevel=level)
    if groups is not None or any_sharded(given):
        spread = gradients(list({id(p): p for p in given}.values()), groups)
        if spread is not None:
            return spread
    params, grads = with_gradients(given)
    found = Gradients(grads, [""] * len(grads), params)
    if not found.apart:  # Only then may one be listed twice.
        once = list({id(p): p for p in params}.values())
        if len(once) < len(params):
            return Gradients(with_gradients(once)[1], [""] * len(once), once)
    return found


def _limit(argument: str, value: float | Tensor, grads: Grads) -> Scalar:
    """Return a limit, checked unless that would wait for a device or break a graph."""
    if not isinstance(value, Tensor):
        return number(argument, value, low=0)
    if value.numel() != 1:
        shape = f"a tensor of shape {tuple(value.shape)}"
        raise PolicyError.of(argument, shape, "give one number, or a tensor of one value")
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        return number(argument, float(value), low=0)
    limit = value.detach().reshape(()).to(grads.device).clamp(min=0)
    return float(limit) if grads.host else limit


def _total(grads: Grads, norm_type: float) -> Scalar:
    order = number("norm_type", float(norm_type), low=0, above=True)
    if not grads.host:
        return _combined(grads, order)
    with np.errstate(over="ignore"):  # A tiny p: the norm itself is beyond float64.
        return _combined(grads, order)


def _combined(grads: Grads, order: float) -> Scalar:
    if isinstance(grads, Sharded):
        return grads.total(order)
    return combine(grads.norms(range(len(grads.names)), order), order, grads.xp)


def _rescale(grads: Grads, total: Scalar, limit: Scalar | float) -> None:
    if grads.host:
        if not total <= limit:  # Else nothing is to be done, which is the usual case.
            grads.scale(np.float64(plain_factor(float(total), float(limit))))
        return
    grads.scale(Rescale().factors(total, Limits(high=limit), grads.xp))


def _refuse_nonfinite(grads: Grads, total: Scalar, norm_type: float, asked: bool) -> None:
    if asked and not bool(grads.xp.isfinite(total)):
        # The first two sentences are torch's, which tests and log filters look for.
        raise NonFiniteError(
            f"The total norm of order {float(norm_type)} for gradients from `parameters` is "
            "non-finite, so it cannot be clipped. To disable this error and scale the gradients by "
            "the non-finite norm anyway, set `error_if_nonfinite=False`. "
            f"The norm is {float(total)}: a gradient holds inf or NaN; nothing was changed. Find "
            "that gradient with gradclip.torch.Clipper(model.named_parameters(), ...)"
        )


def _returned(total: Scalar, grads: Grads) -> Tensor:
    """Return the norm as a tensor: float32 or better."""
    if grads.host:
        return _as_tensor(float(total), double=grads.double)
    return torch.as_tensor(total).to(torch.float64 if grads.double else torch.float32)


def _as_tensor(total: float, *, double: bool) -> Tensor:
    if double or not total <= _MOST:
        # In two steps: a norm beyond float32 becomes inf, and is not an error.
        kind = torch.float64 if double else torch.float32
        return torch.scalar_tensor(total, dtype=torch.float64, device="cpu").to(kind)
    return torch.scalar_tensor(total, dtype=torch.float32, device="cpu")


publish("gradclip.torch", __all__, globals())
