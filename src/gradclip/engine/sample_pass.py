"""One pass of a policy without a memory over the samples of a batch, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._publish import publish
from ..arrays import Array, Factors, Flag, Namespace, Norms, Scalar
from ..errors import PolicyError
from ..method.plan import Stage
from ..method.policy import AnyPolicy
from ..method.threshold import OnlineQuantile
from ..method.threshold.limit import Followed, Ramp
from .sample_edits import Edited
from .samples import WRITTEN, Squares, factors_of, rows_of, stages_of

__all__ = ["SampleResult", "Samples", "decide", "numbers_of", "result_of", "stateless_stages"]


class SampleResult(NamedTuple):
    """What `gradclip.numpy.per_sample` and `gradclip.jax.per_sample` did to each sample.

    Attributes:
        sample_norms: shape (batch,), the norm of each sample's gradient before clipping.
        sample_coef: shape (batch,), the norm after clipping over the norm before: what the sample
            was multiplied by; 0 for a sample that was left out.
        clipped: how many samples the policy changed.
        removed: 1 - Σ(norms after)/Σ(norms before), over the samples that count.
        skipped: shape (batch,), whether a sample was left out because it held inf or NaN.
    """

    sample_norms: Norms
    sample_coef: Factors
    clipped: Scalar
    removed: Scalar
    skipped: Flag


class Samples(NamedTuple):
    """Numbers about each sample; each array has the shape (batch,).

    Attributes:
        norms: before clipping.
        after: the norms after clipping; 0 where a sample was left out.
        coef: the norms after over those before.
        changed: whether any coefficient is not 1, in a sample that counts.
        sound: whether the sample is finite, so that it counts.
    """

    norms: Norms
    after: Norms
    coef: Factors
    changed: Flag
    sound: Flag


def stateless_stages(policy: AnyPolicy, names: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of a policy about one sample that remembers nothing.

    Raises:
        PolicyError: see `stages_of`; or the limit depends on earlier calls, or on their number.
    """
    stages = stages_of(policy, names)
    for threshold in (stage.policy.threshold for stage in stages):
        if isinstance(threshold, OnlineQuantile) or any(map(_moves, vars(threshold).values())):
            remedy = (
                "no call knows of earlier ones here: move the limit yourself, from the norms in "
                "the result, and give by_norm(limit), a number or an array without axes"
            )
            raise PolicyError.of("policy.threshold", threshold, remedy)
    return stages


def _moves(limit: object) -> bool:
    """Return whether a limit needs the number of the step."""
    return isinstance(limit, Ramp) or (isinstance(limit, Followed) and callable(limit.value))


def decide(
    stages: Sequence[Stage], squares: Sequence[Squares], scale: Array | float, xp: Namespace
) -> tuple[Factors, Flag]:
    """Return the coefficients, shape (parameters, B), and which samples are finite, shape (B,).

    The coefficient is 1 where `edited` clips a parameter.

    Args:
        stages: from `stateless_stages`.
        squares: of each parameter; at least one.
        scale: what the norms of each sample are to be multiplied by first, shape (B,) or ().
        xp: the array namespace.
    """
    coefs = [xp.ones_like(squares[0].values)] * len(squares)
    for stage in stages:
        if stage.policy.measure.scope in WRITTEN:
            continue
        rows = rows_of(stage, [squares[member] for member in stage.members], xp)
        factors, _, _ = factors_of(stage, rows, scale, {}, 0, xp)
        for place, member in enumerate(stage.members):
            coefs[member] = factors[place if len(rows) > 1 else 0]
    sound = xp.isfinite(_total(squares, xp))
    stacked = xp.stack(coefs)
    return xp.where(sound, stacked, xp.zeros_like(stacked)), sound


def numbers_of(
    squares: Sequence[Squares],
    scale: Array | float,
    coefs: Factors,
    sound: Flag,
    edits: Mapping[int, tuple[Edited, Squares]],
    xp: Namespace,
) -> Samples:
    """Return the numbers about each sample, from the coefficients that were applied.

    Args:
        squares: as for `decide`.
        scale: as for `decide`.
        coefs: shape (parameters, B); 0 for each sample that is not sound.
        sound: from `decide`.
        edits: by parameter, what `edited` made of it, and the squared norms after, each sample
            divided by its scale.
        xp: the array namespace.
    """
    norms = xp.sqrt(_total(squares, xp))
    zero = xp.zeros_like(norms)
    left = [edits[i][1] if i in edits else each for i, each in enumerate(squares)]
    kept = [xp.where(sound, each.values, zero) for each in left]
    after = xp.sqrt(xp.sum(coefs * coefs * xp.stack(kept), axis=0))
    quotient = after / xp.where(norms > 0, norms, xp.ones_like(norms))
    changed = xp.any(coefs != 1, axis=0)
    for change, _ in edits.values():
        changed = changed | change.changed
    # One coefficient for all parameters is known better than as a quotient of norms.
    coef = quotient if edits else xp.where(xp.all(coefs == coefs[0], axis=0), coefs[0], quotient)
    coef = xp.where(changed, coef, xp.ones_like(coef)) if edits else coef
    return Samples(
        norms=norms * scale,
        after=after * scale,
        coef=xp.where(sound, coef, zero),
        changed=changed & sound,
        sound=sound,
    )


def result_of(samples: Samples, xp: Namespace) -> SampleResult:
    """Return the result about all samples of a batch."""
    zero = xp.zeros_like(samples.norms)
    before = xp.sum(xp.where(samples.sound, samples.norms, zero))
    some = xp.where(before > 0, before, xp.ones_like(before))
    return SampleResult(
        sample_norms=samples.norms,
        sample_coef=samples.coef,
        clipped=xp.sum(samples.changed),
        removed=xp.where(before > 0, 1 - xp.sum(samples.after) / some, xp.zeros_like(before)),
        skipped=~samples.sound,
    )


def _total(squares: Sequence[Squares], xp: Namespace) -> Array:
    return xp.sum(xp.stack([each.values for each in squares]), axis=0)


publish("gradclip.numpy", ["SampleResult"], globals())
