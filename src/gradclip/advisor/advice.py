"""The advice: one recommended policy, and the replay of each policy."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Advice", "Replayed"]


@dataclass(frozen=True)
class Replayed:
    """The effect of one policy on the norms of a record; each share is 0 to 1.

    Attributes:
        policy: the text form of the policy.
        clip_rate: the share of the finite steps that the policy clips.
        removed: the mean share of the norm that the policy removes, over all finite steps.
        removed_when_clipped: the same mean over the clipped steps; None if no step is clipped.
        spikes: the number of steps whose norm is a spike, or a part of an explosion.
        spikes_caught: the number of spikes whose norm after the policy is not a spike.
        loss_spikes: the number of norm spikes before a spike of the loss.
        loss_spikes_caught: the number of these whose norm after the policy is not a spike.
        false_alarms: the number of ordinary steps that lose more than a tenth of their norm.
        false_alarm_rate: the share of the ordinary steps that are false alarms.
        nonfinite: the number of steps with a non-finite norm. The argument `nonfinite` decides
            about these steps, not the threshold.
    """

    policy: str
    clip_rate: float
    removed: float
    removed_when_clipped: float | None
    spikes: int
    spikes_caught: int
    loss_spikes: int
    loss_spikes_caught: int
    false_alarms: int
    false_alarm_rate: float
    nonfinite: int


@dataclass(frozen=True)
class Advice:
    """A recommended policy, the reason, and the replay of all policies.

    Attributes:
        recommended: the text form of the recommended policy.
        reason: the reason for this policy.
        caveats: the limits of the advice, a sentence each; the first says that a replay is
            counterfactual.
        policies: the replay of each policy.
        steps: the number of steps that were replayed.
        replaces: whether the script clips by itself, so that the policy takes the place of that.
    """

    recommended: str
    reason: str
    caveats: tuple[str, ...]
    policies: tuple[Replayed, ...]
    steps: int
    replaces: bool = False

    @property
    def code(self) -> str:
        """The line of Python that uses the policy in a script."""
        return f'attach(optimizer, "{self.recommended}")'

    @property
    def command(self) -> str:
        """The command that uses the policy with an unchanged script."""
        option = " --take-over" if self.replaces else ""
        return f"gradclip run --clip '{self.recommended}'{option} script.py"

    def to_dict(self) -> dict[str, object]:
        """Return the recommended policy, the reason with the caveats, and the replays."""
        return {
            "recommended": self.recommended,
            "reason": " ".join([self.reason, *self.caveats]),
            "policies": [asdict(policy) for policy in self.policies],
        }
