"""Methods that carry something along: what was cut, a momentum, an estimate."""

from __future__ import annotations

from ..catalogue import recipe
from ..policy import Chain, Policy, Wrapped
from ..read import PolicyLike, as_policy
from ..wrapper import Carry, Center, Difference

__all__ = ["centered", "clip21", "with_feedback"]


@recipe(
    kind="wrapper",
    sample=("norm:1.0",),
    paper="Elesedy & Hutter 2023, arXiv:2302.02971",
    wraps=as_policy,
)
def with_feedback(policy: PolicyLike) -> Wrapped:
    """Carry what a policy cuts off into the next step (U-Clip's error feedback).

    u = clip(g + Δ); Δ ← Δ + g - u: what was applied plus what is carried is what there was.

    Args:
        policy: any policy but one by name; give the wrapper inside the rules instead.

    Returns:
        The wrapped policy. Its memory is as large as the gradients.

    Raises:
        PolicyError: policy is not a policy, or holds rules by name.

    Numerics: Δ is at least float32, and takes the rounding of the result up too. A step that is
    skipped leaves it as it is.

    Example:
        >>> from gradclip import by_norm
        >>> str(with_feedback(by_norm(1.0)))
        'feedback(norm:1.0)'

    Source: Elesedy & Hutter 2023, algorithm 1.
    """
    return Wrapped(Carry(), _inner(policy))


@recipe(
    kind="wrapper", sample=("norm:1.0",), paper="Clip21-SGD2M, arXiv:2502.11682", wraps=as_policy
)
def clip21(policy: PolicyLike, beta1: float = 0.1, beta2: float = 1.0) -> Wrapped:
    """Clip a momentum's distance from an estimate; β weighs the new (Clip21-SGD2M).

    v ← (1-β₁)v + β₁g; e ← e + β₂·clip(v - e); e is applied.

    Args:
        policy: what clips the distance, such as by_norm(1.0).
        beta1: β₁ in (0, 1], the weight of the new gradient; 1 is Clip21 without momentum.
        beta2: β₂ in (0, 1], the share of the clipped distance that the estimate moves.

    Returns:
        The wrapped policy. Its memory is twice as large as the gradients.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> from gradclip import by_norm
        >>> str(clip21(by_norm(1.0), beta1=0.5))
        'clip21:beta1=0.5(norm:1.0)'

    Source: arXiv:2502.11682, one worker; β has no default there: these are ours.
    """
    return Wrapped(Difference(beta1, beta2), _inner(policy))


@recipe(
    kind="wrapper",
    sample=("norm:1.0",),
    paper="Karimireddy, He, Jaggi 2021, arXiv:2012.10333",
    wraps=as_policy,
)
def centered(policy: PolicyLike) -> Wrapped:
    """Clip the gradient's distance from the last output (centered clipping).

    v ← v + clip(g - v); v is applied.

    Args:
        policy: what clips the distance, such as by_norm(1.0).

    Returns:
        The wrapped policy, for the stream of one worker. With several, average their outputs.

    Raises:
        PolicyError: policy is not a policy, or holds rules by name.

    Example:
        >>> from gradclip import by_norm
        >>> centered(by_norm(1.0))
        centered(by_norm(1.0))

    Source: Karimireddy et al. 2021, section 4.
    """
    return Wrapped(Center(), _inner(policy))


def _inner(policy: PolicyLike) -> Policy | Chain:
    """Return the policy inside; `Wrapped` refuses one by name."""
    return as_policy(policy)  # type: ignore[return-value]
