"""What a record shows: exploding and vanishing gradients, spikes, thresholds that do nothing."""

from .diagnose import diagnose, diagnose_trace
from .finding import Finding
from .links import PAGES

__all__ = ["PAGES", "Finding", "diagnose", "diagnose_trace"]
