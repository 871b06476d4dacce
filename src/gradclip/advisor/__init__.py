"""Recommend a clipping policy for a run from its recorded norms."""

from .advice import Advice, Replayed
from .advise import advise

__all__ = ["Advice", "Replayed", "advise"]
