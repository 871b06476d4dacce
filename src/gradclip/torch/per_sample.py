"""Clipping of each sample's gradient: the norms without the gradients, then one weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import choice, number
from ..errors import NonFiniteError, PolicyError
from ..method.read import PolicyLike, as_policy
from .samples.alone import alone, refuse_mixed
from .samples.batch import Batch, clipped_batch
from .samples.gathered import gather, refuse_other_batch, refuse_other_sum
from .samples.kept import Kept, units_of
from .samples.refusals import refuse_model
from .samples.rules import rules_of
from .samples.write import means
from .step.checkpoint import describe_state, refuse_other_state

__all__ = ["PerSample", "PerSampleResult", "per_sample"]

Reduction = Literal["mean", "sum"]
NonFiniteSample = Literal["leave-out", "raise"]


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
            most: the limit of a global norm, √(Σ limits²) of several norms, inf if a rule sets no
            upper limit or a parameter has no rule. One sample in place of another moves `.grad` by
            2·C, 2·C/`expected_batch_size`, or 2·C/samples.
        nonfinite: shape (samples,), whether a sample was left out because it held inf or NaN.
        ran: the way of each module, by name: "ghost", from a formula; "vmap", by `torch.func`;
            "loop", one sample after the other; "rows", parameters whose uses were written out and
            added.
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


class PerSample:
    """The clipper of samples that `per_sample` returns.

    Attributes:
        policy: the policy, about the gradient of one sample.
        reduction: "mean" or "sum".
        names: the names of the parameters that are trained.
        steps: how many steps were clipped.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: PolicyLike,
        reduction: Reduction = "mean",
        *,
        nonfinite: NonFiniteSample = "leave-out",
        expected_batch_size: float | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise PolicyError.of("model", model, "give a torch.nn.Module")
        self.policy = as_policy(policy)
        self.reduction = choice("reduction", reduction, ("mean", "sum"))
        self.nonfinite = choice("nonfinite", nonfinite, ("leave-out", "raise"))
        self.expected_batch_size = _expected(expected_batch_size, self.reduction)
        refuse_model(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise PolicyError.of("model", type(model).__name__, "no parameter of it is trained")
        self.names = tuple(trained)
        self.steps = 0
        self._parameters = tuple(trained.values())
        self._model = model
        self._index: dict[Tensor, int] = {p: i for i, p in enumerate(self._parameters)}
        self._rules = rules_of(self.policy, self.names)
        self._limits = self._rules.begin(self._parameters[0])
        self._batches: list[Batch] = []
        self._checked = False
        self._kept = Kept()
        self._kept.watch(units_of(model))

    def __repr__(self) -> str:
        """Return the policy and the reduction."""
        return f"PerSample({self.policy!s}, reduction={self.reduction!r})"

    def __enter__(self) -> PerSample:
        """Return the clipper."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        self.detach()

    def check(self, loss: Callable[..., Tensor], *batch: Tensor) -> None:
        """Refuse a loss that is not the sum or mean of one term for each sample.

        Runs the loss on two samples together and on each alone, in evaluation mode. One call before
        the training finds what no gradient tells: the wrong `reduction`, a model or a loss that
        mixes samples, and a module whose input begins with another axis than the batch.

        Args:
            loss: from the batch to the loss that is trained on, shape ().
            batch: tensors whose first axis counts two samples or more; the first two are taken. Not
                mutated, and neither is `.grad`.

        Raises:
            PolicyError: the loss does not fit the reduction, or mixes samples; or a module's input
                does not begin with the batch.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> clipper = per_sample(model, "norm:1.0", reduction="mean")
            >>> clipper.check(lambda x: model(x).square().mean(), torch.ones(2, 2))
        """
        self._kept.paused = True
        try:
            with torch.enable_grad():
                refuse_mixed(self._model, self._parameters, self.reduction, loss, batch)
                self._kept.clear()
                self._kept.paused = False
                alone(self._model, self._parameters, loss, [each[:2] for each in batch])
            refuse_other_batch(self._kept.uses, 2, "samples that check() took")
        finally:
            self._kept.paused = False
            self._kept.clear()

    @torch.no_grad()
    def accumulate(self, weights: Tensor | None = None) -> None:
        """Take in one micro-batch, after its `loss.backward()`.

        Each sample is clipped here; `clip_` then writes the sum or mean over all micro-batches. A
        loss with reduction "mean" is the mean over its own micro-batch, not divided further.

        Args:
            weights: shape (batch,), each in [0, 1], what each clipped sample counts: 0 leaves out
                a padded sample. Not mutated.

        Raises:
            PolicyError: see `clip_`. The micro-batch is then not taken in.
            NonFiniteError: see `clip_`.
        """
        try:
            self._batches.append(self._take(weights))
        finally:
            self._kept.clear()

    @torch.no_grad()
    def clip_(self, weights: Tensor | None = None) -> PerSampleResult:
        """Put the sum or mean of the clipped samples in `.grad`, after `loss.backward()`.

        .grad = Σ wᵢ·cᵢ·gᵢ / D, with gᵢ the gradient of one sample's loss, cᵢ its coefficient, wᵢ
        its weight, and D = 1 for the sum; for the mean D is the number of samples, those of weight
        0 too, or `expected_batch_size`.

        Args:
            weights: see `accumulate`. After `accumulate` and without a new backward pass, None.

        Returns:
            What was done to each sample.

        Raises:
            PolicyError: there was no backward pass, or there were two; the batch is not the first
                axis; a module cannot run on one sample; in the first step, the samples' gradients
                do not add up to `.grad`; the weights are not usable. `.grad` is as it was, and
                what was accumulated for this step is forgotten.
            NonFiniteError: a sample holds inf or NaN, and nonfinite="raise"; likewise.

        Numerics: everything is float64 until the last rounding, which goes toward zero. The
            coefficient of a sample is rounded down by a bound on all errors in its norm: the exact
            norm of cᵢ·gᵢ, for the tensors that the passes left, never exceeds the limit. A sample
            within some 1e-14 of the limit, or 1e-10 where its terms cancel, may be scaled by as
            much. Values whose squares leave float64 are not looked after; no value of a narrower
            dtype is one.
        """
        if self._kept.uses or not self._batches:
            try:
                self.accumulate(weights)
            except Exception:
                self._batches = []  # What was accumulated is not for the next step.
                raise
        elif weights is not None:
            raise PolicyError.of("weights", weights, "give them to accumulate(): it took the batch")
        batches, self._batches = self._batches, []
        count = sum(len(batch.norms) for batch in batches)
        divisor = 1.0 if self.reduction == "sum" else float(max(count, 1))
        divisor = divisor if self.expected_batch_size is None else self.expected_batch_size
        self._write(batches, divisor)
        self._limits = self._moved(batches)
        self.steps += 1
        bound = torch.stack([batch.bound for batch in batches]).max()
        twice = self.reduction == "mean" and self.expected_batch_size is None
        return _result(batches, bound * (2 if twice else 1) / divisor)

    def detach(self) -> None:
        """Remove the hooks, and forget what they kept."""
        self._kept.detach()
        self._batches = []

    def state_dict(self) -> dict[str, Any]:
        """Return all that the clipper remembers, as plain tensors and primitives."""
        limits = [None if limit is None else limit.clone() for limit in self._limits]
        about = describe_state(self.policy, self.names)
        return {**about, "steps": self.steps, "limits": limits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with all of it or, after an error, with nothing.

        Args:
            state: not mutated.

        Raises:
            PolicyError: it was made for another policy or other parameters, or an entry is not
                one that this policy could have left; names the entry.
        """
        refuse_other_state(state, self.policy, self.names, ("steps", "limits"))
        steps, saved = state["steps"], state["limits"]
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise PolicyError.of("state.steps", steps, "give a whole number >= 0")
        if not isinstance(saved, list) or len(saved) != len(self._limits):
            remedy = f"give a list of {len(self._limits)} limits, as it was saved"
            raise PolicyError.of("state.limits", saved, remedy)
        self._limits = [_limit(*pair) for pair in zip(saved, self._limits, strict=True)]
        self.steps = steps

    def _take(self, weights: Tensor | None) -> Batch:
        """Return what the policy makes of the batch that was kept."""
        gathered = gather(self._kept, self._index, self.names)
        if not self._checked:
            self._checked = refuse_other_sum(gathered, self._parameters, self.names)
        each = _weights(weights, gathered.batch, gathered.device)
        scale = float(gathered.batch) if self.reduction == "mean" else 1.0
        batch = clipped_batch(gathered, self._rules, self._limits, self.steps, scale, each)
        if self.nonfinite == "raise" and bool(batch.nonfinite.any()):
            found = batch.nonfinite.nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the gradients of the samples {found} hold inf or NaN: give "
                "nonfinite='leave-out', or weights of 0 for these samples"
            )
        return batch

    def _write(self, batches: list[Batch], divisor: float) -> None:
        """Write the mean of the micro-batches' sums in `.grad`; a parameter without one gets 0."""
        values = means(batches, [p.dtype for p in self._parameters], divisor)
        for parameter, value in zip(self._parameters, values, strict=True):
            if parameter.grad is not None:
                # In place: it may be a view of something larger.
                _ = parameter.grad.zero_() if value is None else parameter.grad.copy_(value)
            elif value is not None:
                parameter.grad = value

    def _moved(self, batches: list[Batch]) -> list[Tensor | None]:
        """Return the limits of the next step: each moves once a step, by the mean of its moves."""
        counted = torch.stack([batch.counted.sum() for batch in batches]).sum().clamp_min(1)
        new: list[Tensor | None] = []
        for place, limit in enumerate(self._limits):
            moves = [batch.moves[place] for batch in batches]
            total = [move for move in moves if move is not None]
            mean = torch.stack(total).sum(0) / counted if total else None
            new.append(limit if limit is None or mean is None else limit * mean.exp())
        return new


def per_sample(
    model: nn.Module,
    policy: PolicyLike,
    reduction: Reduction = "mean",
    *,
    nonfinite: NonFiniteSample = "leave-out",
    expected_batch_size: float | None = None,
) -> PerSample:
    """Watch a model so that `clip_` can clip the gradient of each sample of a batch.

    The loss must be a sum or mean of one term for each sample, which is the sample's alone. The
    gradients do not tell whether it is: `check` does.

    Args:
        model: its modules get hooks, until `detach`. The first axis of each module's input is the
            batch.
        policy: about the gradient of one sample: scope "global", all parameters that the policy
            covers, or "tensor", each parameter. The threshold is a number, a ramp or an online
            quantile, which all samples share; the response rescales, smooths, normalises or zeroes.
        reduction: whether the loss is the "mean" or the "sum" over the samples. The wrong one
            shifts all norms by the size of the batch.
        nonfinite: "leave-out" counts a sample with inf or NaN as 0 and names it in the result;
            "raise" stops before `.grad` changes.
        expected_batch_size: for the mean, > 0, what to divide the sum by in place of the number of
            samples, as differential privacy does with Poisson batches.

    Returns:
        The clipper; also a context that ends with `detach`.

    Raises:
        PolicyError: an argument is wrong, the policy is not one for samples, or a module mixes
            samples; names the module and the remedy.

    Numerics: see `PerSample.clip_`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> clipper = per_sample(model, "norm:1.0", reduction="sum")
        >>> model(torch.tensor([[3.0, 4.0], [0.3, 0.4]])).sum().backward()
        >>> result = clipper.clip_()
        >>> result.sample_norms, int(result.clipped)
        (tensor([5.0000, 0.5000], dtype=torch.float64), 1)
        >>> model.weight.grad
        tensor([[0.9000, 1.2000]])

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1, without the noise.
    """
    return PerSample(
        model, policy, reduction, nonfinite=nonfinite, expected_batch_size=expected_batch_size
    )


def _expected(size: float | None, reduction: str) -> float | None:
    if size is None:
        return None
    if reduction == "sum":
        remedy = "a sum is not divided: give it with reduction='mean'"
        raise PolicyError.of("expected_batch_size", size, remedy)
    return number("expected_batch_size", size, low=0, above=True, finite=True)


def _weights(weights: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Return what each sample counts, checked."""
    if weights is None:
        return torch.ones(batch, dtype=torch.float64, device=device)
    each = torch.as_tensor(weights).detach().to(device, torch.float64)
    if each.shape != (batch,):
        raise PolicyError.of("weights.shape", tuple(each.shape), f"give {batch} numbers")
    if not bool(((each >= 0) & (each <= 1)).all()):
        raise PolicyError.of("weights", weights, "give numbers from 0 to 1")
    return each


def _limit(saved: object, mine: Tensor | None) -> Tensor | None:
    """Return a saved limit, if it is like the clipper's own."""
    if mine is None and saved is None:
        return None
    if mine is None or not isinstance(saved, Tensor) or saved.shape != mine.shape:
        raise PolicyError.of("state.limits", saved, "its shapes are of another policy")
    if not saved.is_floating_point() or not bool(((saved > 0) & saved.isfinite()).all()):
        raise PolicyError.of("state.limits", saved, "a limit is > 0 and finite")
    return saved.detach().to(mine, copy=True)


def _result(batches: list[Batch], sensitivity: Tensor) -> PerSampleResult:
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
