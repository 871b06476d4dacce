"""Which clipping policy a run needs, from its recorded norms."""

from .advice import Advice, Replayed
from .advise import advise

__all__ = ["Advice", "Replayed", "advise"]
