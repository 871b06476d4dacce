"""Methods that wrap another policy and remember an array for each gradient."""

from __future__ import annotations

from ..catalogue import recipe
from ..policy import Chain, Policy, Wrapped
from ..read import PolicyLike, as_policy
from ..wrapper import Carry, Center, Difference

__all__ = ["centered", "clip21", "with_feedback"]


@recipe(
    purpose="wrapper",
    sample=("norm:1.0",),
    paper="Elesedy & Hutter 2023, arXiv:2302.02971",
    wraps=as_policy,
)
def with_feedback(policy: PolicyLike) -> Wrapped:
    """Add the part that a policy cuts off to the gradient of the next step (U-Clip).

    u = clip(g + Δ); Δ ← Δ + g - u; the optimizer gets u. So u plus the new Δ is g plus the old Δ.

    Use when: the limit binds often, and nothing of the gradient may be lost. Clipping has a bias if
    the noise is not symmetric, and the feedback removes this bias.

    Avoid when: a spike must never reach the weights: the part that was cut comes back in the next
    steps. The memory is as large as the gradients.

    Args:
        policy: the policy that clips. Rules by name are refused: put a wrapper inside each rule
            instead.

    Returns:
        The wrapped policy. Its memory is as large as the gradients.

    Raises:
        PolicyError: policy is not a policy, or holds rules by name.

    Numerics: Δ is at least float32, and also takes the rounding error of u. A skipped step does
    not change Δ.

    Example:
        >>> from gradclip import by_norm
        >>> str(with_feedback(by_norm(1.0)))
        'feedback(norm:1.0)'

    Source: Elesedy & Hutter 2023, algorithm 1.
    """
    return Wrapped(Carry(), _inner(policy))


@recipe(
    purpose="wrapper", sample=("norm:1.0",), paper="Clip21-SGD2M, arXiv:2502.11682", wraps=as_policy
)
def clip21(policy: PolicyLike, beta1: float = 0.1, beta2: float = 1.0) -> Wrapped:
    """Clip the difference of a momentum and an estimate; β weighs the new (Clip21-SGD2M).

    v ← (1-β₁)v + β₁g; e ← e + β₂·clip(v - e); the optimizer gets e.

    Use when: clipping has a bias in your run, and the momentum of this method may take the place of
    the optimizer's own.

    Avoid when: the optimizer has a momentum of its own. The memory is twice as large as the
    gradients.

    Args:
        policy: the policy that clips the difference, such as by_norm(1.0).
        beta1: β₁ in (0, 1], the weight of the new gradient; 1 is Clip21 without momentum.
        beta2: β₂ in (0, 1], the share of the clipped difference that is added to the estimate.

    Returns:
        The wrapped policy. Its memory is twice as large as the gradients.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> from gradclip import by_norm
        >>> str(clip21(by_norm(1.0), beta1=0.5))
        'clip21:beta1=0.5(norm:1.0)'

    Source: arXiv:2502.11682, for one worker. The paper gives no defaults for β₁ and β₂; these
    are ours.
    """
    return Wrapped(Difference(beta1, beta2), _inner(policy))


@recipe(
    purpose="wrapper",
    sample=("norm:1.0",),
    paper="Karimireddy, He, Jaggi 2021, arXiv:2012.10333",
    wraps=as_policy,
)
def centered(policy: PolicyLike) -> Wrapped:
    """Clip the difference between the gradient and the last output (centered clipping).

    v ← v + clip(g - v); the optimizer gets v.

    Use when: the gradients change little from step to step, so that the difference shows an outlier
    better than the norm does; or some workers may send wrong gradients.

    Avoid when: the gradient may change at once for good reasons: the output moves by at most the
    limit in a step. The memory is as large as the gradients.

    Args:
        policy: the policy that clips the difference, such as by_norm(1.0).

    Returns:
        The wrapped policy, for the gradients of one worker. Average the outputs of several
        workers.

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
    """Return the inner policy; `Wrapped` refuses rules by name."""
    return as_policy(policy)  # type: ignore[return-value]
