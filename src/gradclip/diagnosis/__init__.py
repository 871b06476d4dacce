"""What a record shows: exploding and vanishing gradients, spikes, thresholds that do nothing."""

from gradclip.diagnosis.diagnose import diagnose, diagnose_trace
from gradclip.diagnosis.finding import Finding
from gradclip.diagnosis.links import PAGES

__all__ = ["PAGES", "Finding", "diagnose", "diagnose_trace"]
