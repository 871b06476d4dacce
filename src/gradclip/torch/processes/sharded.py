"""PyTorch's side of the engine for gradients that are spread over processes.

Values are measured and changed where they are, by `Gradients`; what is known of them, norms and
cosines, is that of the whole parameters. So the engine makes the same decision in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as torch_xp
import numpy as np
import torch
from torch import Tensor

from ...errors import PolicyError
from ...method.threshold import Limits
from ..tensors.gradients import Gradients
from . import placements as shards
from .layout import Layout, over_all

__all__ = ["Sharded", "gradients"]


class Sharded:
    """The gradients of one step, of all parameters of the model.

    Args:
        grads: those that this process has, in the order of its parameters; None where there is
            none. DTensors and plain tensors.
        owners: the parameters whose `.grad` these are.
        layout: how the parameters lie on the processes.
        loss: the loss of the step in this process; a policy sees the mean over the processes.
        weights: these are parameters, not gradients: every process has its own.

    Attributes:
        quiet: nothing is exchanged: for what only wants shapes.
    """

    values_xp: Any = torch_xp
    apart = True
    spread = True

    def __init__(
        self,
        grads: Sequence[Any],
        owners: Sequence[Any],
        layout: Layout,
        loss: Any = None,
        *,
        weights: bool = False,
    ) -> None:
        self._layout = layout
        self._owners = owners
        self._loss = loss
        self.names = tuple(piece.name for piece in layout.pieces)
        held = [piece.own for piece in layout.pieces]
        given = list(grads)
        replaced = shards.reduced(given, owners)
        for i, value in replaced.items():
            given[i] = value
        self._grads = [None if own is None else given[own] for own in held]
        self.present = tuple(grad is not None for grad in self._grads)
        own = [None if i is None else owners[i] for i in held]
        devices = [t.device for t in (*given, *owners) if t is not None and not t.is_meta]
        device = devices[0] if devices else torch.device("cpu")
        tensors = [
            torch.empty(0, dtype=piece.dtype, device=device) if g is None else shards.local(g)
            for g, piece in zip(self._grads, layout.pieces, strict=True)
        ]
        nobody = torch.empty(0)
        proxies: Any = [nobody if owner is None else shards.Owner(owner) for owner in own]
        self._inner = Gradients(tensors, self.names, proxies, self.present)
        for place, i in enumerate(held):
            if i in replaced:
                self._inner.replace_if_changed(place)
        self._counted = weights or not layout.groups
        self._loss_is_mean = not layout.groups
        self.somewhere: Sequence[bool] = self.present
        if not self.host:
            # Whether others have one is not known without waiting for the device.
            self.somewhere = (True,) * len(self.names)
        self.quiet = False
        self._puts: dict[int, tuple[Any, Any, Any]] = {}

    @property
    def host(self) -> bool:
        """Whether a Python `if` may look at a norm."""
        return self._inner.host

    @property
    def xp(self) -> Any:
        """The array namespace of norms, factors and limits."""
        return self._inner.xp

    @property
    def double(self) -> bool:
        """Whether any of them is of double precision."""
        return self._layout.double

    @property
    def path(self) -> str:
        """What does the work."""
        count = len(self._layout.groups) + len(self._layout.over)
        return f"{self._inner.path}+{count}-collective{'s' * (count != 1)}"

    @property
    def device(self) -> torch.device:
        """Where the decisions are made."""
        return self._inner.device

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The local values."""
        return self._inner.tensors

    @property
    def shared(self) -> bool:
        """Whether a gradient will be replaced if it changes."""
        return self._inner.shared

    @property
    def sizes(self) -> Any:
        """The number of values of each whole gradient, as floats."""
        counts = []
        for piece, grad in zip(self._layout.pieces, self._grads, strict=True):
            there = piece.own is None or grad is not None or self.somewhere[len(counts)]
            counts.append(float(np.prod(piece.shape)) if there else 0.0)
        return self.array(counts)

    @property
    def loss(self) -> Any:
        """The mean of the losses of the processes that have one."""
        if not self._loss_is_mean:
            known = self._loss is not None
            value = torch.as_tensor(self._loss if known else 0.0).reshape(()).double()
            both = torch.stack(
                [value.to(self.device), value.new_tensor(float(known)).to(self.device)]
            )
            total, count = self._layout.anywhere(both)
            none = self.host and not float(count)
            self._loss, self._loss_is_mean = (None if none else total / count), True
        return self._loss

    @property
    def weights(self) -> Sharded:
        """The parameters themselves, as something to measure."""
        return Sharded(self._owners, self._owners, self._layout, weights=True)

    def array(self, values: list[float]) -> Any:
        """Return numbers where the decisions are made."""
        return self._inner.array(values)

    def norms(
        self,
        members: Sequence[int],
        order: float,
        relative: tuple[float, float] | None = None,
    ) -> Any:
        """Return the p-norm of each whole gradient, shape (members,)."""
        here = self._inner.norms(members, order, relative)
        flags = None
        if self.host and not self._counted and len(members):
            flags = np.asarray(self.present, float)
        found, flags = self._layout.norms(here, order, members, flags)
        if flags is not None:
            self._counted, self.somewhere = True, tuple((flags > 0).tolist())
        return found

    def total(self, order: float) -> Any:
        """Return the norm of all of them together, and nothing else."""
        here = self._inner.norms(range(len(self.names)), order)
        return self._layout.total(here, order, self.xp)

    def unit_norms(
        self, members: Sequence[int], order: float, axis: int | None
    ) -> tuple[Any, Any, list[int]]:
        """Return each whole unit's norm and number of values, and how many each member has."""
        counts = [self._layout.units(m, axis) for m in members]
        totals = [float(np.prod(self._layout.pieces[m].shape)) for m in members]
        each = [t / max(c, 1) for t, c in zip(totals, counts, strict=True)]
        here, index = self._here(members, counts, axis)
        local, _, _ = self._inner.unit_norms(here, order, axis)
        if self.host:
            norms = np.zeros(sum(counts))
            norms[index] = local
        else:
            norms = local.new_zeros(sum(counts))
            norms[torch.from_numpy(index).to(local.device)] = local
        if not self.quiet:
            norms, _ = self._layout.norms(norms, order, np.repeat(members, counts))
        return norms, self.array(np.repeat(each, counts).tolist()), counts

    def unit_dots(self, a: Any, b: Any, counts: list[int], *, root: bool = False) -> Any:
        """Return Σ ab, or its root, over each member's units: all of them are known here."""
        return self._inner.unit_dots(a, b, counts, root=root)

    def scale(self, factors: Any) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        self._inner.scale(factors)

    def scale_units(self, members: Sequence[int], factors: Any, axis: int | None) -> None:
        """Multiply each unit of each member by its factor, shape (units,) of the whole."""
        counts = [self._layout.units(m, axis) for m in members]
        here, index = self._here(members, counts, axis)
        mine = factors[index if self.host else torch.from_numpy(index).to(factors.device)]
        self._inner.scale_units(here, mine, axis)

    def _here(
        self, members: Sequence[int], counts: list[int], axis: int | None
    ) -> tuple[list[int], np.ndarray]:
        """Return the members that are here, and where their units are among all units."""
        here, parts, start = [], [np.zeros(0, np.int64)], 0
        for member, count in zip(members, counts, strict=True):
            grad = self._grads[member]
            if grad is not None:
                here.append(member)
                vector = len(self._layout.pieces[member].shape) < 2
                at = (
                    np.zeros(1, np.int64)
                    if vector
                    else self._layout.places(member, grad, axis or 0)
                )
                parts.append(start + at)
            start += count
        return here, np.concatenate(parts)

    def clamp(self, members: Sequence[int], limits: Limits, norms: Any, keep: Any) -> Any:  # noqa: ARG002
        """Clamp what the kernel can read between two numbers; return norms and cosines, or None."""
        if not self.host:
            return None
        before = self._inner.norms(members, 2.0)
        done = self._inner.clamp(members, limits, before, keep)
        if done is None:
            return None
        for place, member in enumerate(members):
            self._note(member, before[place], done[0][place], done[1][place])
        return self.whole(members, *done)

    def refuse_complex(self, members: Sequence[int]) -> None:
        """Refuse values that have no order: in every process, since all know the dtypes."""
        self._inner.refuse_complex(members)

    def get(self, member: int) -> Tensor:
        """Return a copy of the local values of one gradient, in at least float32."""
        return self._inner.get(member)

    def put(
        self, member: int, value: Tensor, keep: Any, *, like: Tensor | None = None
    ) -> tuple[Any, Any]:
        """Store local values; what is returned is of the local part, until `whole`."""
        tensor = self._inner.tensors[member]
        before = tensor if like is None else like.to(tensor.dtype)
        size = Gradients([before], [""]).norms(range(1), 2.0)[0]
        norm, cosine = self._inner.put(member, value, keep, like=like)
        self._note(member, size, norm, cosine)
        return norm, cosine

    def _note(self, member: int, before: Any, after: Any, cosine: Any) -> None:
        """Keep three lengths of a local part: before, after, and of the difference."""
        xp = self.xp
        one = xp.ones_like(before)
        large = xp.where(before > after, before, after)
        unit = xp.where(large > 0, large, one)
        a, b = before / unit, after / unit
        apart = xp.sqrt((a - b) ** 2 + 2 * a * b * (1 - cosine)) * unit
        # A cosine of 1 says that nothing changed, but for the rounding of the two norms.
        apart = xp.where((cosine == 1) & (before > 0) & (after > 0), 0 * unit, apart)
        self._puts[member] = before, after, apart

    def whole(self, members: Sequence[int], norms: Any, cosines: Any) -> tuple[Any, Any]:
        """Return norms and cosines of whole gradients: one collective for each group."""
        xp = self.xp
        if not self._layout.groups:
            self._puts.clear()
            return norms, cosines
        zero = xp.zeros_like(norms[:1])[0]
        puts = [self._puts.get(m, (zero, zero, zero)) for m in members]
        self._puts.clear()
        flat = xp.stack([put[part] for part in range(3) for put in puts])
        found, _ = self._layout.norms(flat, 2.0, [*members] * 3)
        count = len(members)
        before, after, apart = found[:count], found[count : 2 * count], found[2 * count :]
        one = xp.ones_like(before)
        known = (before > 0) & (after > 0) & (apart > 0)
        a, b = xp.where(known, before, one), xp.where(known, after, one)
        d = xp.where(known, apart, one)
        # ‖a-b‖² = (|a|-|b|)² + 2|a||b|(1-cos), in units in which no square overflows.
        cosine = 1 - ((d / a) * (d / b) - ((a - b) / a) * ((a - b) / b)) / 2
        most = one - xp.finfo(one.dtype).eps / 2
        cosine = xp.where(cosine < most, cosine, most)
        return after, xp.where(known, cosine, one)

    def singular(self, member: int) -> tuple[Any, Any, Any] | None:
        """Return the local rows of U, σ, and the local columns of Vᵀ, of the whole matrix.

        A decomposition needs the matrix: it is collected, and every process decomposes it.
        """
        piece, grad = self._layout.pieces[member], self._grads[member]
        if grad is None or not (piece.spread or grad.shape != piece.shape):
            return self._inner.singular(member)
        if not shards.is_sharded(grad) or grad.shape != piece.shape:
            remedy = (
                "singular values need the whole matrix, and this one lies in pieces: make it a "
                "DTensor, or give the parameter another policy"
            )
            raise PolicyError.of(f"parameter {piece.name}", f"{tuple(grad.shape)} here", remedy)
        matrix, rows, columns = shards.whole(grad, self.get(member))
        finite = torch.isfinite(matrix).all()
        matrix = torch.where(finite, matrix, 0.0)
        if len(piece.shape) < 2:
            norm = torch.linalg.vector_norm(matrix).reshape(1)
            return None, torch.where(finite, norm, torch.nan), None
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        at = (torch.from_numpy(index).to(u.device) for index in (rows, columns))
        return u[next(at)], torch.where(finite, s, torch.nan), vh[:, next(at)]

    def unscale(self, scale: Any) -> None:
        """Divide every gradient by a scalar tensor, as a loss scaler would."""
        self._inner.unscale(shards.local(scale))

    def measure_divided_by(self, scale: Any) -> None:
        """Have norms be those of the gradients over a scalar, which somebody else divides by."""
        self._inner.measure_divided_by(shards.local(scale))

    def zero_nonfinite(self) -> None:
        """Put 0 for every value that is inf or NaN."""
        self._inner.zero_nonfinite()

    def clamp_all(self, limits: Limits) -> None:
        """Clamp every gradient between two numbers, measuring nothing."""
        self._inner.clamp_all(limits)


def gradients(
    params: Sequence[Any], groups: object = None, grads: Sequence[Any] | None = None
) -> Sharded | None:
    """Return the gradients of parameters without names, for their total norm; None if all are here.

    Args:
        params: any mix of plain tensors and DTensors.
        groups: over which all of them are spread, besides their own meshes.
        grads: the gradients, where they are not `.grad`.
    """
    found = over_all(params, groups)
    if found is None:
        return None
    return Sharded([p.grad for p in params] if grads is None else grads, params, found)
