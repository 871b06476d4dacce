"""The advice: one policy to use, and how each policy would have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Advice", "Replayed"]


@dataclass(frozen=True)
class Replayed:
    """What one policy would have done to the norms of a record. Shares are 0 to 1.

    Attributes:
        policy: its text form.
        clip_rate: share of the finite steps that it clips.
        removed: mean share of the norm that the policy removes, over all finite steps.
        removed_when_clipped: the same mean over the clipped steps; None if no step is clipped.
        spikes: steps whose norm the diagnosis calls a spike, or a part of an explosion.
        spikes_caught: spikes whose norm after the policy is not a spike.
        loss_spikes: spikes that came before a spike of the loss.
        loss_spikes_caught: loss spikes whose norm after the policy is not a spike.
        false_alarms: ordinary steps that lose more than a tenth of their norm.
        false_alarm_rate: share of the false alarms among the ordinary steps.
        nonfinite: steps whose norm was not finite. `nonfinite=` decides about them, not the
            threshold.
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
    """A recommended policy, the reason, and the policies it was compared with.

    Attributes:
        recommended: the text form of the policy.
        reason: why this policy.
        caveats: limits of the advice, a sentence each; the first says that a replay is
            counterfactual.
        policies: every policy that was replayed.
        steps: how many steps were replayed.
    """

    recommended: str
    reason: str
    caveats: tuple[str, ...]
    policies: tuple[Replayed, ...]
    steps: int

    @property
    def code(self) -> str:
        """The line for a script."""
        return f'attach(optimizer, "{self.recommended}")'

    @property
    def command(self) -> str:
        """The command for a script that stays as it is."""
        return f"gradclip run --clip '{self.recommended}' script.py"

    def to_dict(self) -> dict[str, object]:
        """Return plain data: recommended, reason (with the caveats), policies."""
        return {
            "recommended": self.recommended,
            "reason": " ".join([self.reason, *self.caveats]),
            "policies": [asdict(policy) for policy in self.policies],
        }
