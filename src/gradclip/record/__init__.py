"""The record of a run: a file of JSON lines that any program can read during the run."""

from .._publish import publish as _publish
from .reader import read_run
from .rows import Counters, End, Event, Header, Norms, Optimizer, Samples
from .run import Run
from .schema import SCHEMA, STEP_FIELDS, Parameter
from .trace import Trace, traces_of
from .writer import RecordWriter

__all__ = [
    "SCHEMA",
    "STEP_FIELDS",
    "Counters",
    "End",
    "Event",
    "Header",
    "Norms",
    "Optimizer",
    "Parameter",
    "RecordWriter",
    "Run",
    "Samples",
    "Trace",
    "read_run",
    "traces_of",
]

_OUTER = ("Run", "read_run")
_publish("gradclip", _OUTER, globals())
_publish(__name__, [_name for _name in __all__ if _name not in _OUTER], globals())
