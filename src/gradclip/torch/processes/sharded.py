"""PyTorch's side of the engine for gradients that are spread over processes.

Values are measured and changed where they are, by `Gradients`; what is known of them, norms and
cosines, is that of the whole parameters. So the engine makes the same decision in every process.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import array_api_compat.torch as torch_xp
import numpy as np
import torch
from torch import Tensor

from ...arrays import Array, Cosines, Factors, Flag, Namespace, Norms, Scalar, Sizes
from ...engine.backend import Change, ClampTo, Decompose, Measured, Relative, Spectrum, Units
from ...errors import PolicyError
from ...method.axes import Axis
from ...method.threshold import Limits
from ..tensors.gradients import Gradients, floats, one_value
from ..tensors.norms import decomposed
from . import placements as shards
from .exchange import over_all
from .layout import GroupsLike, Layout

__all__ = ["Sharded", "gradients"]


class Sharded:
    """The gradients of one step, of all parameters of the model.

    Args:
        grads: those that this process has, in the order of its parameters; None where there is
            none. DTensors and plain tensors.
        owners: the parameters whose `.grad` these are.
        layout: how the parameters lie on the processes.
    """

    values_xp: Namespace = torch_xp
    apart = True

    def __init__(
        self, grads: Sequence[Tensor | None], owners: Sequence[Tensor], layout: Layout
    ) -> None:
        self._layout = layout
        self._owners = owners
        self.names: tuple[str, ...] = tuple(piece.name for piece in layout.pieces)
        held = [piece.own for piece in layout.pieces]
        given = list(grads)
        replaced = shards.reduced(given, owners)
        for i, value in replaced.items():
            given[i] = value
        self._grads = [None if own is None else given[own] for own in held]
        own = [None if i is None else owners[i] for i in held]
        devices = [t.device for t in (*given, *owners) if t is not None and not t.is_meta]
        device = devices[0] if devices else torch.device("cpu")
        tensors = [
            torch.empty(0, dtype=piece.dtype, device=device) if g is None else shards.local(g)
            for g, piece in zip(self._grads, layout.pieces, strict=True)
        ]
        nobody = torch.empty(0)
        proxies = [nobody if owner is None else shards.Owner(owner) for owner in own]
        self._present = tuple(grad is not None for grad in self._grads)
        self._inner = Gradients(tensors, self.names, proxies, self._present)
        for place, i in enumerate(held):
            if i in replaced:
                self._inner.replace_if_changed(place)

    def unexchanged(self) -> Sharded:
        """Return the same gradients, of which nothing is exchanged: for all that wants shapes."""
        alone = copy.copy(self)
        alone._layout = replace(self._layout, groups=[], over=[])
        return alone

    @property
    def host(self) -> bool:
        """Whether a Python `if` may look at a norm."""
        return self._inner.host

    @property
    def xp(self) -> Namespace:
        """The array namespace of norms, factors and limits."""
        return self._inner.xp

    @property
    def double(self) -> bool:
        """Whether any of them is of double precision."""
        return self._layout.double

    @property
    def ran(self) -> str:
        """What does the work."""
        count = len(self._layout.groups) + len(self._layout.over)
        return f"{self._inner.ran}+{count}-collective{'s' * (count != 1)}"

    @property
    def device(self) -> torch.device:
        """Where the decisions are made."""
        return self._inner.device

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The local values."""
        return self._inner.tensors

    @property
    def has_replacements(self) -> bool:
        """Whether a gradient will be replaced if it changes."""
        return self._inner.has_replacements

    @property
    def sizes(self) -> Sizes:
        """The number of values of each whole gradient, as floats."""
        return self._array([float(np.prod(piece.shape)) for piece in self._layout.pieces])

    def mean_loss(self, loss: Tensor | float | None) -> Scalar | float | None:
        """Return the mean of the losses of the processes that have one.

        Args:
            loss: of this process, or None.
        """
        if not self._layout.groups:
            return self._inner.mean_loss(loss)
        given = loss if isinstance(loss, Tensor) else torch.tensor(loss or 0.0, dtype=torch.float64)
        value = one_value("loss", given)
        known = value.new_tensor(float(loss is not None))
        both = torch.stack([value.to(self.device), known.to(self.device)])
        total, count = self._layout.anywhere(both)
        return None if self.host and not float(count) else total / count

    def weights(self) -> Sharded:
        """Return the parameters themselves, as something to measure."""
        return Sharded([floats(owner) for owner in self._owners], self._owners, self._layout)

    def _array(self, values: list[float]) -> Array:
        """Return numbers where the decisions are made."""
        return self._inner._array(values)

    def measure(self, order: float) -> Measured:
        """Return the p-norm of every whole gradient, and which exist in any process."""
        everything = range(len(self.names))
        here = self._inner.norms(everything, order)
        if not self._layout.groups:
            return Measured(here, self._present)
        if not self.host:
            # Whether others have one is not known without waiting for the device.
            found, _ = self._layout.norms(here, order, everything)
            return Measured(found, (True,) * len(self.names))
        found, flags = self._layout.norms(here, order, everything, np.asarray(self._present, float))
        return Measured(found, self._present if flags is None else tuple((flags > 0).tolist()))

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Norms:
        """Return the p-norm of each whole gradient, shape (members,)."""
        if relative is not None:
            assert isinstance(relative.weights, Sharded)
            relative = relative._replace(weights=relative.weights._inner)
        here = self._inner.norms(members, order, relative)
        return self._layout.norms(here, order, members)[0]

    def total(self, order: float) -> Scalar:
        """Return the norm of all of them together, and nothing else."""
        here = self._inner.norms(range(len(self.names)), order)
        return self._layout.total(here, order, self.xp)

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        """Return each whole unit's norm and number of values, and how many each member has."""
        counts = [self._layout.units(m, axis) for m in members]
        totals = [float(np.prod(self._layout.pieces[m].shape)) for m in members]
        each = [t / max(c, 1) for t, c in zip(totals, counts, strict=True)]
        here, index = self._here(members, counts, axis)
        local = self._inner.unit_norms(here, order, axis).norms
        if self.host:
            norms = np.zeros(sum(counts))
            norms[index] = local
        else:
            norms = local.new_zeros(sum(counts))
            norms[torch.from_numpy(index).to(local.device)] = local
        norms, _ = self._layout.norms(norms, order, np.repeat(members, counts).tolist())
        sizes = self._array(np.repeat(each, counts).tolist())
        return Units(norms, sizes, counts, None)

    def take(self, values: Norms, places: Sequence[int]) -> Norms:
        """Return values[places], shape (places,)."""
        return self._inner.take(values, places)

    def spread(self, values: Norms, counts: list[int]) -> Norms:
        """Return each member's value once for each of its units: from (members,) to (units,)."""
        return self._inner.spread(values, counts)

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units: all of them are known here."""
        return self._inner.unit_dots(a, b, counts, root=root)

    def scale(self, factors: Factors) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        self._inner.scale(factors)

    def scale_units(self, members: Sequence[int], factors: Factors, axis: Axis) -> None:
        """Multiply each unit of each member by its factor, shape (units,) of the whole."""
        counts = [self._layout.units(m, axis) for m in members]
        here, index = self._here(members, counts, axis)
        mine = factors[index if self.host else torch.from_numpy(index).to(factors.device)]
        self._inner.scale_units(here, mine, axis)

    def saturate(self) -> None:
        """Have what is finite stay finite; see `Gradients.saturate`."""
        self._inner.saturate()

    @property
    def saturates(self) -> bool:
        """Whether a factor may be over 1."""
        return self._inner.saturates

    def _here(
        self, members: Sequence[int], counts: list[int], axis: Axis
    ) -> tuple[list[int], np.ndarray]:
        """Return the members that are here, and where their units are among all units."""
        here, parts, start = [], [np.zeros(0, np.int64)], 0
        for member, count in zip(members, counts, strict=True):
            grad = self._grads[member]
            if grad is not None:
                here.append(member)
                parts.append(start + self._layout.unit_places(member, grad, axis))
            start += count
        return here, np.concatenate(parts)

    def edit(
        self,
        members: Sequence[int],
        change: Change,
        keep: Flag,
        like: Mapping[int, Tensor] | None = None,
        *,
        measured: bool = True,
    ) -> tuple[Norms, Cosines]:
        """Change local values; return norms and cosines of the whole gradients.

        A complex gradient is refused in every process, since all know the dtypes.
        """
        self._inner.refuse_complex(members)
        if isinstance(change, ClampTo) and self.host:
            before = self._inner.norms(members, 2.0)
            done = self._inner.clamp(members, replace(change, norms=before), keep)
            if done is not None:
                return self._reduce_edits(members, before, *done)
        sizes: dict[int, Scalar] = {}

        def here(member: int, value: Tensor, _: Decompose) -> Tensor | None:
            new = change(member, value, partial(self._decomposed, member, value))
            if measured and new is not None:
                tensor = self._inner.tensors[member]
                old = tensor if like is None else like[member].to(tensor.dtype)
                sizes[member] = Gradients([old], [""]).norms(range(1), 2.0)[0]
            return new

        norms, cosines = self._inner.edit(members, here, keep, like, measured=measured)
        if not measured or not self._layout.groups:
            return norms, cosines
        zero = self.xp.zeros_like(norms[0])
        before = self.xp.stack([sizes.get(member, zero) for member in members])
        return self._reduce_edits(members, before, norms, cosines)

    def _reduce_edits(
        self, members: Sequence[int], before: Norms, after: Norms, cosines: Cosines
    ) -> tuple[Norms, Cosines]:
        """Return norms and cosines of whole gradients: one collective for each group.

        Args:
            members: the gradients that were edited.
            before: shape (members,), the norms of the local parts before.
            after: shape (members,), the norms of the local parts now.
            cosines: shape (members,), between the two.
        """
        if not self._layout.groups:
            return after, cosines
        xp, count = self.xp, len(members)
        apart = _distance(before, after, cosines, xp)
        flat = xp.concat([before, after, apart])
        found, _ = self._layout.norms(flat, 2.0, [*members] * 3)
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

    def _decomposed(self, member: int, value: Tensor) -> Spectrum | None:
        """Return the local rows of U, σ, and the local columns of Vᵀ, of the whole matrix.

        A decomposition needs the matrix: it is collected, and every process decomposes it.
        """
        piece, grad = self._layout.pieces[member], self._grads[member]
        if grad is None or not (piece.sum_groups or grad.shape != piece.shape):
            return decomposed(value)
        if not shards.is_sharded(grad) or grad.shape != piece.shape:
            remedy = (
                "singular values need the whole matrix, and this one lies in pieces: make it a "
                "DTensor, or give the parameter another policy"
            )
            raise PolicyError.of(f"parameter {piece.name}", f"{tuple(grad.shape)} here", remedy)
        matrix, rows, columns = shards.gather_matrix(grad, value)
        finite = torch.isfinite(matrix).all()
        matrix = torch.where(finite, matrix, 0.0)
        if len(piece.shape) < 2:
            norm = torch.linalg.vector_norm(matrix).reshape(1)
            return None, torch.where(finite, norm, torch.nan), None
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        at = (torch.from_numpy(index).to(u.device) for index in (rows, columns))
        return u[next(at)], torch.where(finite, s, torch.nan), vh[:, next(at)]

    def unscale(self, scale: Tensor) -> None:
        """Divide every gradient by a scalar tensor, as a loss scaler would."""
        self._inner.unscale(shards.local(scale))

    def measure_divided_by(self, scale: Tensor) -> None:
        """Have norms be those of the gradients over a scalar, which somebody else divides by."""
        self._inner.measure_divided_by(shards.local(scale))

    def zero_nonfinite(self) -> None:
        """Put 0 for every value that is inf or NaN."""
        self._inner.zero_nonfinite()

    def clamp_all(self, limits: Limits) -> None:
        """Clamp every gradient between two numbers, measuring nothing."""
        self._inner.clamp_all(limits)


def _distance(before: Norms, after: Norms, cosines: Cosines, xp: Namespace) -> Norms:
    """Return the lengths of the differences, from two lengths and the cosine between them."""
    one = xp.ones_like(before)
    large = xp.where(before > after, before, after)
    unit = xp.where(large > 0, large, one)
    a, b = before / unit, after / unit
    apart = xp.sqrt((a - b) ** 2 + 2 * a * b * (1 - cosines)) * unit
    # A cosine of 1 says that nothing changed, but for the rounding of the two norms.
    return xp.where((cosines == 1) & (before > 0) & (after > 0), 0 * unit, apart)


def gradients(
    params: Sequence[Tensor],
    groups: GroupsLike | None = None,
    grads: Sequence[Tensor] | None = None,
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
