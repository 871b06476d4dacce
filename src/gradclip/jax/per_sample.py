"""Clipping of each sample's gradient, from the function of one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import enable_x64

from ..arrays import Array, Tree, Values
from ..checks import choice, flag, integer
from ..engine.sample_edits import Edited, edited, written_stages
from ..engine.sample_pass import (
    SampleResult,
    Samples,
    decide,
    numbers_of,
    result_of,
    stateless_stages,
)
from ..engine.samples import Squares
from ..errors import PolicyError
from ..method.plan import Stage
from ..method.read import PolicyLike, as_policy
from .leaves import flat
from .norms import widest
from .sample_args import Argnums, Arguments, arguments_of, checked_argnums, refuse_uneven
from .sample_rows import (
    flushed,
    in_one_row,
    largest,
    rounded_down,
    squares_of,
    stored_toward_zero,
    weighted,
)

__all__ = ["per_sample"]


class _Piece(NamedTuple):
    """What is left of some samples.

    Attributes:
        sums: of each parameter, Σ of the clipped gradients, in float64.
        samples: the numbers about each sample, in float64.
        aux: what the function returned beside the loss, stacked.
    """

    sums: list[Array]
    samples: Samples
    aux: Tree


def per_sample(
    fun: Callable[..., Tree],
    policy: PolicyLike = "norm:1.0",
    *,
    argnums: Argnums = 0,
    batch_argnums: Argnums | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    microbatch: int | None = None,
    has_aux: bool = False,
) -> Callable[..., Tree]:
    """Return a function like `jax.grad` of a loss, in which each sample's gradient is clipped.

    grads = Σ cᵢ·∇fun(params, sampleᵢ) / D, with cᵢ the coefficient of a sample, and D the size of
    the batch for the mean, 1 for the sum.

    Args:
        fun: the loss of ONE sample, shape (): `jax.vmap` gives the samples one by one, so none can
            mix with another. Not the loss of a batch.
        policy: about the gradient of one sample: scope "global", all parameters that the policy
            covers, "tensor", each, "unit", each unit of each, along the last axis, or "element",
            each value. The threshold is a number or an array without axes, a share for tensors,
            or for units a ratio to the weights; the response rescales, smooths, normalises, zeroes
            or clamps. A parameter's name is its path in the tree joined by dots, as for `clip`.
        argnums: which positional arguments are differentiated, as for `jax.grad`.
        batch_argnums: which positional arguments hold the samples along the first axis of each
            of their arrays; None for all positional arguments but those of `argnums`. All others,
            and those by keyword, are given to each sample whole.
        reduction: "mean" or "sum" of the clipped gradients.
        microbatch: ≥ 1, how many samples' gradients are in memory at a time; None for all. The
            pieces are the steps of a `jax.lax.scan`.
        has_aux: whether `fun` returns a pair of the loss and any tree.

    Returns:
        A function with the arguments of `fun` that returns `(grads, result)`, or
        `(grads, result, aux)` with each array of `aux` stacked over the samples. `grads` is like
        what `jax.grad` returns, `result` a `SampleResult`. For jit, vmap, scan and sharding.

    Raises:
        PolicyError: an argument is wrong, or the policy is not one for samples, or remembers
            something; from the function: the loss has a shape, an argument holds no batch, or a
            parameter is not an array of real floats.

    Numerics: norms, coefficients and sums are float64 whether x64 is enabled or not. A coefficient
        is then rounded down, first by a bound on the error of the norm and then to float32 if x64
        is not enabled; the last rounding of the gradients goes toward zero. So for each sample's
        gradient as JAX computed it, the exact norm times `sample_coef` is at most the limit, and
        so is the exact norm of the result for a batch of one. A sample within some 1e-14 of the
        limit may be scaled by 1e-7. `sample_norms` is rounded to nearest. A coefficient under
        1.2e-38 is 0 without x64. A sample with inf or NaN counts as 0 and is told in `skipped`.

    Example:
        >>> import jax.numpy as jnp
        >>> clipped = per_sample(lambda w, x: jnp.dot(w, x), "norm:1.0", reduction="sum")
        >>> grads, result = clipped(jnp.zeros(2), jnp.asarray([[3.0, 4.0], [0.3, 0.4]]))
        >>> result.sample_norms.tolist(), int(result.clipped)
        ([5.0, 0.5], 1)
        >>> [f"{value:.4f}" for value in grads.tolist()]
        ['0.9000', '1.2000']

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1, without the noise.
    """
    if not callable(fun):
        raise PolicyError.of("fun", fun, "give the loss of one sample, a function")
    wanted = as_policy(policy)
    trained = checked_argnums("argnums", argnums)
    mapped = None if batch_argnums is None else checked_argnums("batch_argnums", batch_argnums)
    choice("reduction", reduction, ("mean", "sum"))
    pieces = None if microbatch is None else integer("microbatch", microbatch, low=1)
    aux_too = flag("has_aux", has_aux)

    def clipped(*args: Tree, **kwargs: Tree) -> Tree:
        given = arguments_of(args, trained, mapped)
        if pieces is not None:
            refuse_uneven(given, pieces)
        names, leaves, tree = flat(given.trained)
        _refuse_unusable(names, leaves)
        stages = stateless_stages(wanted, names)

        def gradient(batch: Tree) -> tuple[list[Values], Tree]:
            def loss(leaves: list[Values]) -> tuple[Array, Tree]:
                found = fun(*given.filled(jax.tree.unflatten(tree, leaves), batch), **kwargs)
                return _loss_of(found, has_aux=aux_too)

            return jax.grad(loss, has_aux=True)(leaves)

        def piece(batch: Tree) -> _Piece:
            rows, aux = jax.vmap(gradient)(batch)
            return _clipped_piece(stages, names, leaves, rows, aux)

        whole = _over(piece, given, pieces)
        kind = widest()
        with enable_x64(True):
            divisor = float(max(given.size, 1)) if reduction == "mean" else 1.0
            each = zip(whole.sums, leaves, strict=True)
            grads = [stored_toward_zero(total / divisor, x.dtype) for total, x in each]
            result = _narrowed(result_of(whole.samples, jnp), kind)
        done = jax.tree.unflatten(tree, grads)
        return (done, result, whole.aux) if aux_too else (done, result)

    return clipped


def _clipped_piece(
    stages: Sequence[Stage],
    names: Sequence[str],
    weights: Sequence[Values],
    rows: list[Values],
    aux: Tree,
) -> _Piece:
    """Return the sums and the numbers of some samples, from their gradients."""
    kind, written = widest(), written_stages(stages)
    rows = [x if i in written else in_one_row(x) for i, x in enumerate(rows)]
    with enable_x64(True):
        scale = largest(rows)
        squares = [squares_of(x, scale) for x in rows]
        coefs, sound = decide(stages, squares, scale, jnp)
        coefs = rounded_down(coefs, kind)
        edits: dict[int, tuple[Edited, Squares]] = {}
        for i, stage in written.items():
            edit = edited(
                stage,
                names[i],
                rows[i].astype(jnp.float64),
                jnp,
                weights=partial(weights[i].astype, jnp.float64),
                slack=flushed(rows[i]),
                scale=scale,
                axis=-1,
            )
            edits[i] = edit, squares_of(edit.values, scale)
        now = [edits[i][0].values if i in edits else x for i, x in enumerate(rows)]
        sums = [
            jnp.reshape(weighted(x, coefs[i], sound), weights[i].shape) for i, x in enumerate(now)
        ]
        return _Piece(sums, numbers_of(squares, scale, coefs, sound, edits, jnp), aux)


def _over(piece: Callable[[Tree], _Piece], given: Arguments, most: int | None) -> _Piece:
    """Return the piece of a whole batch, of which at most so many samples are taken at a time."""
    if most is None or most >= given.size:
        return piece(given.batch)
    count = given.size // most
    inside = count * most
    # Every count-th sample, and not the next ones: each device of a sharded batch has some.
    steps = jax.tree.map(
        lambda x: jnp.swapaxes(jnp.reshape(x[:inside], (most, count, *x.shape[1:])), 0, 1),
        given.batch,
    )
    rest = jax.tree.map(lambda x: x[inside:], given.batch)

    def step(sums: list[Array], batch: Tree) -> tuple[list[Array], tuple[Samples, Tree]]:
        found = piece(batch)
        return _added(sums, found.sums), (found.samples, found.aux)

    first = jax.eval_shape(piece, jax.tree.map(lambda x: x[0], steps))
    zeros = [_zeros(x) for x in first.sums]
    sums, (samples, aux) = jax.lax.scan(step, zeros, steps)
    samples, aux = jax.tree.map(
        lambda x: jnp.reshape(jnp.swapaxes(x, 0, 1), (inside, *x.shape[2:])), (samples, aux)
    )
    if inside == given.size:
        return _Piece(sums, samples, aux)
    last = piece(rest)
    with enable_x64(True):
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), (samples, aux), (last.samples, last.aux)
        )
    return _Piece(_added(sums, last.sums), *joined)


def _zeros(like: jax.ShapeDtypeStruct) -> Array:
    """Return zeros of a shape and dtype, in the layout that an explicit mesh asks for."""
    with enable_x64(True):
        return jnp.zeros(like.shape, like.dtype, device=like.sharding)


def _added(a: list[Array], b: list[Array]) -> list[Array]:
    with enable_x64(True):
        return [x + y for x, y in zip(a, b, strict=True)]


def _narrowed(result: SampleResult, kind: jnp.dtype) -> SampleResult:
    """Return a result in the widest float that is enabled."""
    return SampleResult(
        sample_norms=result.sample_norms.astype(kind),
        sample_coef=stored_toward_zero(result.sample_coef, kind),
        clipped=result.clipped.astype(jnp.int32),
        removed=result.removed.astype(kind),
        skipped=result.skipped,
    )


def _loss_of(found: Tree, *, has_aux: bool) -> tuple[Array, Tree]:
    """Return the loss and the rest of what a function of one sample returned."""
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
        remedy = "with has_aux=True, return a pair of the loss and a tree"
        raise PolicyError.of("fun", type(found).__name__, remedy)
    loss: Array = found[0] if has_aux else found
    aux: Tree = found[1] if has_aux else None
    shape, kind = jnp.shape(loss), jnp.result_type(loss)
    if shape != () or not jnp.issubdtype(kind, jnp.floating):
        remedy = "it gets one sample, without the batch's axis: return its loss, one real number"
        raise PolicyError.of("fun", f"a loss of shape {shape} and dtype {kind}", remedy)
    return loss, aux


def _refuse_unusable(names: Sequence[str], leaves: Sequence[Values]) -> None:
    if not leaves:
        raise PolicyError.of("argnums", "no array", "give parameters to differentiate")
    for name, leaf in zip(names, leaves, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            remedy = "the gradient is complex, and per-sample norms are of real ones"
            raise PolicyError.of(f"{name or 'the parameter'}.dtype", str(leaf.dtype), remedy)
