"""Recommend a clipping policy for a run from its recorded norms and losses."""

from .._publish import publish
from .advice import Advice, Arm, Replayed
from .advise import advise

__all__ = ["Advice", "Arm", "Replayed", "advise"]

publish("gradclip", ("Advice", "advise"), globals())
