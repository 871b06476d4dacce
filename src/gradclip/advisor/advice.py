"""What the advisor says: one policy to use, and how each policy would have done."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Advice", "Replayed"]


@dataclass(frozen=True)
class Replayed:
    """What one policy would have done to the norms of a record. Shares are 0 to 1.

    Attributes:
        policy: its text form.
        clip_rate: share of the finite steps that it clips.
        removed: mean share of the norm that goes, over all finite steps.
        removed_when_clipped: the same over the clipped steps; None if there are none.
        spikes: steps whose norm is a spike by the diagnosis, or part of an explosion.
        spikes_caught: those that come out as no spike.
        loss_spikes: spikes that came before a spike of the loss.
        loss_spikes_caught: those that come out as no spike.
        false_alarms: steps that are no spike and yet lose more than a tenth of their norm.
        false_alarm_rate: their share of the steps that are no spike.
        nonfinite: steps whose norm was not finite. No threshold acts on them: `nonfinite=` does.
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
    """A recommended policy, why, and what it was compared with.

    Attributes:
        recommended: the text form of the policy.
        reason: why this one.
        caveats: what to keep in mind, a sentence each; the first one always is that a replay is
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
        """Return plain data: recommended, reason (the caveats in it), policies."""
        return {
            "recommended": self.recommended,
            "reason": " ".join([self.reason, *self.caveats]),
            "policies": [asdict(policy) for policy in self.policies],
        }
