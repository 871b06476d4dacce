"""Methods that follow a moment of the values themselves: of each value, or of each tensor."""

from __future__ import annotations

import math

from ...checks import number
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Chain, Policy, Wrapped
from ..response import Normalise, Power, Rescale, ShrinkSpikes
from ..threshold import MovingAverage, NormalisedNorm, OtherOrder, PowerAverage, SecondMoment
from ..wrapper import Momentum

__all__ = [
    "acclip",
    "adaclip",
    "adagn",
    "adamw_clip",
    "spam",
    "spamp",
    "stable_spam",
]


@recipe(kind="moment", paper="Huang et al. 2025, arXiv:2501.06842")
def spam(theta: float = 5000.0, decay: float = 0.999, warmup: int = 19) -> Policy:
    """Clip single values that are spikes of their own second moment (SPAM's clipping).

    g → sign(g)·√(θ·V) if g² > θ·V; then V ← β·V + (1-β)·g², without bias correction.

    Args:
        theta: θ > 0.
        decay: β in [0, 1).
        warmup: steps before anything is clipped, ≥ 0: 19 in the authors' code, whose 150
            are another warm-up, of the learning rate.

    Returns:
        The policy. Its memory is as large as the gradients.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a value whose V is still 0 has no limit; in the authors' code it stays 0 for ever.

    Example:
        >>> spam()
        spam()

    Source: Huang et al. 2025, equation 4; the momentum reset belongs to the optimizer.
    """
    return Policy(Measure("element"), SecondMoment(theta, decay, warmup), Rescale())


@recipe(kind="moment", paper="AdamWClip, github.com/wandeln/AdamWClip")
def adamw_clip(
    k: float = 3.0, decay: float = 0.999, minimum: float = 1e-10, warmup: int = 0
) -> Policy:
    """Clip single values at a multiple of their own root mean square (AdamWClip's clipping).

    g → clamp(g, ±max(k·√V̂, minimum)), V̂ = V/(1-βᵗ); then V ← β·V + (1-β)·g² of the clipped g.

    Args:
        k: > 0.
        decay: β, the weight of the old V, in [0, 1).
        minimum: the least limit, ≥ 0.
        warmup: steps before anything is clipped, ≥ 0.

    Returns:
        The policy. Its memory is as large as the gradients; the optimizer shares its own.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a value whose V is still 0 has no limit; in the authors' code it is the minimum, to
    which the first step would be cut. t counts the steps in V; their code counts one more.

    Example:
        >>> adamw_clip()
        adamw_clip()

    Source: the authors' code, 3, 1e-10 and no warm-up; another version of it, and its
    description, have a minimum of 0.01, on √V̂, and a warm-up of 10.
    """
    root = number("k", k, low=0, above=True)
    return Policy(
        Measure("element"), SecondMoment(root * root, decay, warmup, True, minimum), Rescale()
    )


@recipe(kind="moment", paper="Stable-SPAM, arXiv:2502.17055")
def adaclip(decay: float = 0.999) -> Policy:
    """Shrink the values above the moving average of each tensor's largest magnitude.

    T ← γ·T + (1-γ)·max|g|, T̂ = T/(1-γᵗ); |gᵢ| > T̂ → gᵢ·T̂/max|g|.

    Args:
        decay: γ in [0, 1).

    Returns:
        The policy.

    Raises:
        PolicyError: decay is out of its range.

    Example:
        >>> adaclip()
        adaclip()

    Source: arXiv:2502.17055, AdaClip. The correction has its own counter, which no reset touches.
    """
    threshold = MovingAverage(1.0, decay, current=True, clipped=False)
    return Policy(Measure("tensor", math.inf), threshold, ShrinkSpikes())


@recipe(
    kind="moment",
    paper="Stable-SPAM, arXiv:2502.17055",
    renamed={"mean": "mean_decay", "square": "square_decay"},
)
def adagn(mean_decay: float = 0.7, square_decay: float = 0.9, eps: float = 1e-8) -> Policy:
    """Give each tensor the norm that its moving moments call for.

    g/‖g‖·m̂/(√v̂ + ε), m and v the moving averages of ‖g‖ and ‖g‖².

    Args:
        mean_decay: γ₁ in [0, 1), the weight of the old average of norms.
        square_decay: γ₂ in [0, 1), the weight of the old average of squared norms.
        eps: ε ≥ 0.

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> adagn()
        adagn()

    Source: arXiv:2502.17055, AdaGN.
    """
    return Policy(
        Measure("tensor"), NormalisedNorm(mean_decay, square_decay, eps), Normalise(eps=0.0)
    )


@recipe(
    kind="moment",
    paper="Stable-SPAM, arXiv:2502.17055",
    renamed={"mean": "mean_decay", "square": "square_decay"},
)
def stable_spam(
    mean_decay: float = 0.7, square_decay: float = 0.9, decay: float = 0.999, eps: float = 1e-8
) -> Chain:
    """Shrink spikes, then normalise each tensor: AdaClip, then AdaGN.

    Args:
        mean_decay: γ₁ of AdaGN, in [0, 1).
        square_decay: γ₂ of AdaGN, in [0, 1).
        decay: γ₃ of AdaClip, in [0, 1).
        eps: of AdaGN, ≥ 0.

    Returns:
        The chain of the two policies.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> stable_spam() == adaclip() | adagn()
        True

    Source: arXiv:2502.17055, algorithm 1; the momentum reset belongs to the optimizer.
    """
    return adaclip(decay) | adagn(mean_decay, square_decay, eps)


@recipe(kind="moment", paper="You & Liu 2025, arXiv:2510.01578")
def spamp(alpha: float = 0.85, decay: float = 0.99) -> Policy:
    """Raise each magnitude to a power, then cap each tensor at the average of its norm (SPAMP).

    τ ← β·τ + (1-β)·‖g‖, y = sign(g)·|g|^α; y·min(1, τ/‖y‖), for each tensor.

    Args:
        alpha: α in (0, 1]; the paper's lies in [0.7, 1]. At 1 only the cap is left.
        decay: β, the weight of the old average, in [0, 1); the paper's lies in [0.9, 0.999].

    Returns:
        The policy. This step's norm counts for its own limit. A magnitude under 1 grows.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: τ is rid of its start at zero. ‖y‖ is the α-th power of the norm of order 2·α.

    Example:
        >>> spamp()
        spamp()

    Source: a description of arXiv:2510.01578. There α falls as ‖g‖/τ grows, by a function that
    the description leaves open; here α is constant, and the default is ours.
    """
    average = MovingAverage(1.0, decay, current=True, clipped=False)
    power = Power(alpha)
    return Policy(Measure("tensor", 2 * power.alpha), OtherOrder(2.0, average), power)


@recipe(kind="moment", paper="Zhang et al. 2020, arXiv:1912.03194")
def acclip(
    alpha: float = 1.0, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-5
) -> Wrapped:
    """Clip each value of a momentum at a moving average of |g|; β weighs the old (ACClip).

    m ← β₁m + (1-β₁)g; τ^α ← β₂τ^α + (1-β₂)|g|^α; min(τ/(|m| + ε), 1)·m.

    Args:
        alpha: α > 0.
        beta1: β₁ in [0, 1), the weight of the old momentum.
        beta2: β₂ in [0, 1), the weight of the old average.
        eps: ε ≥ 0.

    Returns:
        The policy. What comes out is a momentum: use it with plain SGD.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> acclip()
        acclip()

    Source: Zhang et al. 2020, algorithm 2.
    """
    inner = Policy(Measure("element"), PowerAverage(alpha, beta2), Rescale(eps=eps))
    return Wrapped(Momentum(beta1), inner)
