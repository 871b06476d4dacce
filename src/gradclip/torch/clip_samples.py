"""Clipping of each sample's gradient: the norms without the gradients, then one weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from .._publish import publish
from ..checks import choice
from ..errors import NonFiniteError, PolicyError
from ..method.policy import AnyPolicy
from ..method.read import PolicyLike, as_policy
from .samples.alone import adds_up, alone
from .samples.batch import Batch, clipped_batch
from .samples.gathered import Gathered, gather, refuse_other_batch, refuse_other_sum
from .samples.given import expected_size, rows_attribute, sample_weights, saved_limit
from .samples.kept import Kept, units_of
from .samples.refusals import refuse_model
from .samples.result import PerSampleResult, result_of
from .samples.root import LossRoot
from .samples.rules import rules_of
from .samples.scaled import Scaled, refuse_scaled_grad, scaled_by
from .samples.stacked import forget_rows, has_rows, stacked
from .samples.write import write
from .step.checkpoint import describe_state, refuse_other_state

__all__ = ["PerSample", "PerSampleResult", "per_sample"]

Reduction = Literal["mean", "sum"]
NonFiniteSample = Literal["leave-out", "raise"]


class PerSample:
    """The clipper of samples that `per_sample` returns.

    Attributes:
        policy: the policy, about the gradient of one sample.
        reduction: "mean" or "sum".
        names: the names of the parameters that are trained.
        batch_grad: whether backward passes write the gradients of whole weights.
        rows: the attribute that holds the samples' gradients; None if hooks are there for them.
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
        batch_grad: bool = True,
        rows: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise PolicyError.of("model", model, "give a torch.nn.Module")
        self.policy: AnyPolicy = as_policy(policy)
        self.reduction: str = choice("reduction", reduction, ("mean", "sum"))
        self.nonfinite: str = choice("nonfinite", nonfinite, ("leave-out", "raise"))
        self.expected_batch_size: float | None = expected_size(expected_batch_size, self.reduction)
        self.rows: str | None = rows_attribute(rows)
        self.batch_grad = batch_grad
        refuse_model(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise PolicyError.of("model", type(model).__name__, "no parameter of it is trained")
        self.names: tuple[str, ...] = tuple(trained)
        self.steps: int = 0
        self._parameters = tuple(trained.values())
        self._model = model
        self._index: dict[Tensor, int] = {p: i for i, p in enumerate(self._parameters)}
        self._rules = rules_of(self.policy, self.names)
        self._limits = self._rules.begin(self._parameters[0])
        self._batches: list[Batch] = []
        self._checked = False
        self._tried = False
        self._kept = Kept()
        if self.rows is None:
            self._kept.root = LossRoot()
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
        if not self._check(loss, batch):
            remedy = "the gradients of the two samples must be finite and not all zero: give others"
            raise PolicyError.of("batch", "its first two samples", remedy)

    def _check(self, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]) -> bool:
        """Do what `check` does; return whether the gradients told anything."""
        self._kept.paused = True
        try:
            with torch.enable_grad():
                told = adds_up(self._model, self._parameters, self.reduction, loss, batch)
                self._kept.clear()
                self._kept.paused = False
                alone(self._model, self._parameters, loss, [each[:2] for each in batch])
            refuse_other_batch(self._kept.uses, 2, "samples that check() took")
            return told
        finally:
            self._kept.paused = False
            self._kept.clear()

    def backward(self, loss: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """Run `loss(*batch).backward()`, the first time after `check(loss, *batch)`.

        So a wrong reduction, or a loss that mixes samples, is refused before the first step. The
        check waits for a batch of two samples whose gradients tell something.

        Args:
            loss: from the batch to the loss that is trained on, shape (). It is a mean if it
                divides by the number of samples that it is given, not by a constant.
            batch: tensors whose first axis counts the samples. Not mutated; `.grad` is.

        Returns:
            The loss, detached.

        Raises:
            PolicyError: see `check`.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1)
            >>> clipper = per_sample(model, "norm:1.0", reduction="mean")
            >>> loss = clipper.backward(lambda x: model(x).square().mean(), torch.ones(2, 2))
            >>> result = clipper.clip_()
        """
        if not self._tried and all(each.dim() and len(each) > 1 for each in batch):
            self._tried = self._check(loss, batch)
        with torch.enable_grad():
            value = loss(*batch)
            value.backward()
        return value.detach()

    @torch.no_grad()
    def accumulate(
        self, weights: Tensor | None = None, *, grad_scaler: GradScaler | None = None
    ) -> None:
        """Take in one micro-batch, after its `loss.backward()`.

        Each sample is clipped here; `clip_` then writes the sum or mean over all micro-batches. A
        loss with reduction "mean" is the mean over its own micro-batch, not divided further.

        Args:
            weights: shape (batch,), each in [0, 1], what each clipped sample counts: 0 leaves out
                a padded sample. Not mutated.
            grad_scaler: the scaler of the loss, if it was scaled. Not mutated.

        Raises:
            PolicyError: see `clip_`. The micro-batch is then not taken in.
            NonFiniteError: see `clip_`.
        """
        try:
            self._batches.append(self._take(weights, scaled_by(grad_scaler)))
        finally:
            self._kept.clear()
        if self.rows is not None:
            forget_rows(self._parameters, self.rows)

    @torch.no_grad()
    def clip_(
        self, weights: Tensor | None = None, *, grad_scaler: GradScaler | None = None
    ) -> PerSampleResult:
        """Put the sum or mean of the clipped samples in `.grad`, after `loss.backward()`.

        .grad = Σ wᵢ·cᵢ·gᵢ / D, with gᵢ the gradient of one sample's loss, cᵢ its coefficient, wᵢ
        its weight, and D = 1 for the sum; for the mean D is the number of samples, those of weight
        0 too, or `expected_batch_size`.

        Args:
            weights: see `accumulate`. After `accumulate` and without a new backward pass, None.
            grad_scaler: the scaler of the loss, if it was scaled, after
                `grad_scaler.unscale_(optimizer)`: `.grad` then is not scaled. Not mutated.

        Returns:
            What was done to each sample.

        Raises:
            PolicyError: there was no backward pass, or there were two; the batch is not the first
                axis; a module cannot run on one sample; in the first step, the samples' gradients
                do not add up to `.grad`; the weights are not usable. `.grad` is as it was, and
                what was accumulated for this step is forgotten.
            NonFiniteError: a sample holds inf or NaN, and nonfinite="raise"; likewise.

        Numerics: the coefficient of a sample is rounded down by a bound on all errors in its norm,
            which is made of float64 products: the exact norm of cᵢ·gᵢ, for the tensors that the
            passes left, never exceeds the limit. A sample within some 1e-14 of the limit, or 1e-10
            where its terms cancel, may be scaled by as much. The sum is float64 for a float64
            model and float32 for a narrower one. Its float64 norm is at most Σ wᵢ·limit / D: it is
            brought down where rounding went over, by up to 3e-7 in float32. Values whose squares
            leave float64 are not looked after; no value of a narrower dtype is one.
        """
        refuse_scaled_grad(scaled_by(grad_scaler))
        if self._has_batch() or not self._batches:
            try:
                self.accumulate(weights, grad_scaler=grad_scaler)
            except Exception:
                self._batches = []  # What was accumulated is not for the next step.
                raise
        elif weights is not None:
            raise PolicyError.of("weights", weights, "give them to accumulate(): it took the batch")
        batches, self._batches = self._batches, []
        count = sum(len(batch.norms) for batch in batches)
        divisor = 1.0 if self.reduction == "sum" else float(max(count, 1))
        divisor = divisor if self.expected_batch_size is None else self.expected_batch_size
        write(self._parameters, batches, divisor)
        self._limits = self._moved(batches)
        self.steps += 1
        bound = torch.stack([batch.bound for batch in batches]).max()
        twice = self.reduction == "mean" and self.expected_batch_size is None
        return result_of(batches, bound * (2 if twice else 1) / divisor)

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
        self._limits = [saved_limit(*pair) for pair in zip(saved, self._limits, strict=True)]
        self.steps = steps

    def _has_batch(self) -> bool:
        """Return whether there is a batch that was not taken in."""
        if self.rows is not None:
            return has_rows(self._parameters, self.rows)
        return bool(self._kept.uses)

    def _gathered(self, scaled: Scaled) -> tuple[Gathered, float]:
        """Return the batch, and what makes of its gradients those of the samples' own losses."""
        if self.rows is not None:
            return stacked(self._parameters, self.names, self.rows), 1 / scaled.factor
        gathered = gather(self._kept, self._index, self.names)
        if self._kept.root is not None:
            self._kept.root.refuse_other(self.reduction, gathered.batch)
            self._kept.root = None if gathered.batch > 1 else self._kept.root
        if not self._checked:
            left = scaled.factor / scaled.grad
            self._checked = refuse_other_sum(gathered, self._parameters, self.names, left)
            self._kept.lean = self._checked and not self.batch_grad
        return gathered, (gathered.batch if self.reduction == "mean" else 1) / scaled.factor

    def _take(self, weights: Tensor | None, scaled: Scaled) -> Batch:
        """Return what the policy makes of the batch that is there."""
        gathered, scale = self._gathered(scaled)
        each = sample_weights(weights, gathered.batch, gathered.device)
        batch = clipped_batch(
            gathered, self._rules, self._parameters, self._limits, self.steps, scale, each
        )
        if self.nonfinite == "raise" and bool(batch.nonfinite.any()):
            found = batch.nonfinite.nonzero().flatten().tolist()
            raise NonFiniteError(
                f"the gradients of the samples {found} hold inf or NaN: give "
                "nonfinite='leave-out', or weights of 0 for these samples"
            )
        return batch

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
    batch_grad: bool = True,
    rows: str | None = None,
) -> PerSample:
    """Watch a model so that `clip_` can clip the gradient of each sample of a batch.

    The loss must be a sum or mean of one term for each sample, which is the sample's alone. The
    first step refuses the wrong reduction where the graph of the loss is certain about it, such as
    `cross_entropy` of the output; `check`, or `PerSample.backward`, finds all else.

    Args:
        model: its modules get hooks, until `detach`. The first axis of each module's input is the
            batch.
        policy: about the gradient of one sample: scope "global", all parameters that the policy
            covers, "tensor", each parameter, "unit", each row of each, or "element", each value.
            The threshold is a number, a ramp, for tensors a share, for units a ratio to the
            weights, or an online quantile, which all samples share; the response rescales, smooths,
            normalises, zeroes or clamps. Units and elements need the gradients written out, one
            parameter at a time, each the size of the batch times the parameter.
        reduction: whether the loss is the "mean" or the "sum" over the samples. The wrong one
            shifts all norms by the size of the batch.
        nonfinite: "leave-out" counts a sample with inf or NaN as 0 and names it in the result;
            "raise" stops before `.grad` changes.
        expected_batch_size: for the mean, > 0, what to divide the sum by in place of the number of
            samples, as differential privacy does with Poisson batches.
        batch_grad: False saves time. After the first step, backward passes then leave out the
            gradients of the batch for weights of two or more axes, in the modules that go the way
            "ghost": their `.grad` is what `clip_` writes, and nothing without it.
        rows: the name of an attribute of the parameters, such as Opacus's "grad_sample", which
            holds the samples' own gradients, shape `(batch, *parameter.shape)`, or a list of
            such tensors, when `clip_` is called; then no hooks are set, no loss is looked at, and
            the reduction is that of the result. `clip_` takes the tensors: the attribute is None
            afterwards. An attribute, since there Opacus leaves the gradients, and since they then
            cannot be mixed up between parameters; put those of `torch.func.vmap` there yourself.

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
        model,
        policy,
        reduction,
        nonfinite=nonfinite,
        expected_batch_size=expected_batch_size,
        batch_grad=batch_grad,
        rows=rows,
    )


publish("gradclip.torch", ("PerSample", "per_sample"), globals())
