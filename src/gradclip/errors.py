"""Every exception that gradclip raises, and the one warning class it uses."""

from __future__ import annotations

from .show.words import cut_off

__all__ = [
    "GradclipError",
    "GradclipWarning",
    "LayoutError",
    "NonFiniteError",
    "PolicyError",
    "RecordError",
]

_LONGEST_REMEDY = 1500


class GradclipError(Exception):
    """Base of every error that gradclip raises for a user's fault."""


class PolicyError(GradclipError, ValueError):
    """A policy, or an argument that describes one, is wrong."""

    @classmethod
    def of(cls, argument: str, value: object, remedy: str) -> PolicyError:
        """Say which argument is wrong, what it was, and what to do instead."""
        remedy = cut_off(remedy, _LONGEST_REMEDY)
        return cls(f"{cut_off(argument)}={_shown(value)} is not usable: {remedy}")


class NonFiniteError(GradclipError, RuntimeError):
    """A gradient holds inf or NaN and the policy says to stop, or skipped too often."""


class LayoutError(GradclipError, RuntimeError):
    """The processes of a distributed run do not hold the same model."""


class RecordError(GradclipError, ValueError):
    """A record cannot be read or written."""


class GradclipWarning(UserWarning):
    """Something that the user should know; each is said once."""


def _shown(value: object) -> str:
    """Return the repr of a value, cut after 300 characters, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # A repr may be anybody's code, and an int of 5,000 digits has none.
        text = f"<{type(value).__name__}>"
    return cut_off(text)
