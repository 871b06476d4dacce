"""What one step did to each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..._publish import publish
from .batch import Batch

__all__ = ["PerSampleResult", "result_of"]


@dataclass(frozen=True)
class PerSampleResult:
    """What one step did to each sample.

    All numbers are tensors on the device of the gradients, in float64. The samples of several
    micro-batches follow one another.

    Attributes:
        sample_norms: shape (samples,), the norm of each sample's gradient before clipping.
        sample_coef: shape (samples,), the norm after clipping over the norm before, times the
            sample's weight; 0 for a sample that was left out.
        clipped: how many samples the policy changed.
        removed: 1 - Σ(norms after)/Σ(norms before), over the samples that count.
        sensitivity: the most by which one sample, added or removed, moves `.grad` before its last
            rounding. It is C for the sum, C/`expected_batch_size` for the mean with that, else
            2·C/samples, since a sample moves the divisor too. C is what the norm of a sample is at
            most: the limit of a global norm; √(Σ limits²) of the norms of tensors or units; for
            values √(Σ max(|low|, |high|)²), which is c·√n of n values clamped to ±c; inf if a rule
            sets no upper limit or a parameter has no rule. The limits of norms of parameters that
            took no part count as well: which ones do may depend on the samples. One sample in place
            of another moves `.grad` by 2·C, 2·C/`expected_batch_size`, or 2·C/samples.
        nonfinite: shape (samples,), whether a sample was left out because it held inf or NaN.
        ran: the way of each module, by name: "ghost", from a formula; "vmap", by `torch.func`;
            "loop", one sample after the other; "rows", parameters whose gradients were written
            out, for a policy of values or units or since uses differ, or were given so.
    """

    sample_norms: Tensor
    sample_coef: Tensor
    clipped: Tensor
    removed: Tensor
    sensitivity: Tensor
    nonfinite: Tensor = field(repr=False)
    ran: Mapping[str, tuple[str, ...]]

    @property
    def left_out(self) -> tuple[int, ...]:
        """The places of the samples that held inf or NaN; reads the device."""
        return tuple(self.nonfinite.nonzero().flatten().tolist())


def result_of(batches: Sequence[Batch], sensitivity: Tensor) -> PerSampleResult:
    """Return the result over all micro-batches."""
    before = torch.stack([batch.before for batch in batches]).sum()
    after = torch.stack([batch.after for batch in batches]).sum()
    ran: dict[str, dict[str, None]] = {}
    for batch in batches:
        for way, names in batch.ran.items():
            ran.setdefault(way, {}).update(dict.fromkeys(names))
    some = torch.where(before > 0, before, 1.0)
    return PerSampleResult(
        sample_norms=torch.cat([batch.norms for batch in batches]),
        sample_coef=torch.cat([batch.coef for batch in batches]),
        clipped=torch.stack([batch.clipped for batch in batches]).sum(),
        removed=torch.where(before > 0, 1 - after / some, 0.0),
        sensitivity=sensitivity,
        nonfinite=torch.cat([batch.nonfinite for batch in batches]),
        ran={way: tuple(names) for way, names in ran.items()},
    )


publish("gradclip.torch", ("PerSampleResult",), globals())
