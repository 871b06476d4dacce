"""What happened, step by step: JSON lines that anything can read, while the run still runs."""

from gradclip.record.reader import read_run
from gradclip.record.run import Counters, End, Event, Header, Norms, Optimizer, Run
from gradclip.record.schema import SCHEMA, STEP_FIELDS, Parameter
from gradclip.record.trace import Trace, traces_of
from gradclip.record.writer import RecordWriter

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
    "Trace",
    "read_run",
    "traces_of",
]
