"""Find faults in a record: exploding and vanishing gradients, spikes, idle thresholds."""

from .diagnose import diagnose, diagnose_trace
from .ending import find_ending
from .finding import Finding
from .links import PAGES

__all__ = ["PAGES", "Finding", "diagnose", "diagnose_trace", "find_ending"]
