"""Find faults in a record: exploding and vanishing gradients, spikes, idle thresholds."""

from .._publish import publish
from .diagnose import diagnose, diagnose_trace
from .ending import find_ending
from .finding import Finding
from .kinds import KINDS, explanation_of
from .links import PAGES
from .verdict import Verdict, verdict

__all__ = [
    "KINDS",
    "PAGES",
    "Finding",
    "Verdict",
    "diagnose",
    "diagnose_trace",
    "explanation_of",
    "find_ending",
    "verdict",
]

publish("gradclip", ("Finding", "diagnose"), globals())
