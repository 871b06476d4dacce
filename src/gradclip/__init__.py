"""Gradient clipping that is exact, fast, and shows what it did.

A method is data: what is measured, how large is too large, what happens then. Importing this
package imports no framework; `gradclip.torch`, `gradclip.numpy` and `gradclip.jax` do the work.
"""

from .errors import GradclipError, GradclipWarning, NonFiniteError, PolicyError, RecordError
from .measure import Measure
from .policy import ByName, Chain, Policy, as_policy, by_name
from .recipes import by_norm, by_value, floor
from .record import Run, read_run
from .response import Clamp, Rescale
from .result import ClipResult
from .spec import from_dict, parse, to_dict
from .threshold import Fixed

__version__ = "0.1.0"

__all__ = [
    "ByName",
    "Chain",
    "Clamp",
    "ClipResult",
    "Fixed",
    "GradclipError",
    "GradclipWarning",
    "Measure",
    "NonFiniteError",
    "Policy",
    "PolicyError",
    "RecordError",
    "Rescale",
    "Run",
    "as_policy",
    "by_name",
    "by_norm",
    "by_value",
    "floor",
    "from_dict",
    "parse",
    "read_run",
    "to_dict",
]
