"""Which clipping policy a run needs, from its recorded norms."""

from gradclip.advisor.advice import Advice, Replayed
from gradclip.advisor.advise import advise

__all__ = ["Advice", "Replayed", "advise"]
