"""Every exception that gradclip raises, and the one warning class it uses."""

from __future__ import annotations

__all__ = [
    "GradclipError",
    "GradclipWarning",
    "LayoutError",
    "NonFiniteError",
    "PolicyError",
    "RecordError",
]


class GradclipError(Exception):
    """Base of every error that gradclip raises for a user's fault."""


class PolicyError(GradclipError, ValueError):
    """A policy, or an argument that describes one, is wrong."""

    @classmethod
    def of(cls, argument: str, value: object, remedy: str) -> PolicyError:
        """Say which argument is wrong, what it was, and what to do instead."""
        return cls(f"{argument}={value!r} is not usable: {remedy}")


class NonFiniteError(GradclipError, RuntimeError):
    """A gradient holds inf or NaN and the policy says to stop, or skipped too often."""


class LayoutError(GradclipError, RuntimeError):
    """The processes of a distributed run do not mean the same model."""


class RecordError(GradclipError, ValueError):
    """A record cannot be read or written."""


class GradclipWarning(UserWarning):
    """Something the user should know, told once."""
