"""What a clipper asks of the hooks that put it into the steps of an optimizer."""

from __future__ import annotations

from typing import Protocol

from ...method.policy import AnyPolicy

__all__ = ["Attachment"]


class Attachment(Protocol):
    """What puts a clipper into the steps of an optimizer, and keeps skipped steps from it."""

    @property
    def scaled_because(self) -> str | None:
        """Why the optimizer does not apply the clip factor itself; None where it does."""
        ...

    def refuse_policy(self, policy: AnyPolicy) -> None:
        """Refuse, by a PolicyError, a policy that cannot clip the optimizer's steps."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether a step of the optimizer runs now."""
        ...

    def remove(self) -> None:
        """Let go of the optimizer."""
        ...
