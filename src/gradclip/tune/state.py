"""The state of a tuning: one JSON file, which is complete at any moment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import GradclipError
from ..method.read import parse
from ..record.schema import encode_row
from ..record.values import WrongValue, number_of, text_of, whole_of
from .outcome import Outcome
from .plan import Trial

__all__ = ["SCHEMA", "State"]

SCHEMA = 1
"""The version of the file."""


class State:
    """The outcomes of the finished trials, in a file that is replaced after each trial.

    Args:
        path: the file; a tuning with the same setting continues from its outcomes.
        setting: every fact that the outcomes depend on, as plain data.
        fresh: whether to ignore the outcomes in the file.

    Raises:
        GradclipError: the file cannot be read or written, or has another setting.
    """

    def __init__(self, path: Path, setting: dict[str, object], *, fresh: bool = False) -> None:
        self.path = path
        self.setting = setting
        self.outcomes: dict[Trial, Outcome] = {}
        for left in path.parent.glob(f"{path.stem}.partial-*"):
            left.unlink()
        if path.exists() and not fresh:
            self._read()
        self._write()

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Add an outcome, and write the file."""
        self.outcomes[trial] = outcome
        self._write()

    def _read(self) -> None:
        try:
            data = json.loads(self.path.read_text("utf-8"))
            if not isinstance(data, dict):
                raise WrongValue("the state", data, "an object")
            schema, found = data.get("schema"), _object(data, "setting")
            trials = data.get("trials")
            if not isinstance(trials, list):
                raise WrongValue("trials", trials, "a list")
            self.outcomes = dict(map(_trial_of, trials))
        except (OSError, ValueError, RecursionError) as error:
            raise GradclipError(
                f"the tuning cannot continue from {self.path} ({error}): give --fresh to begin "
                "again, or another --out"
            ) from error
        if schema != SCHEMA or found != self.setting:
            changed = [key for key in self.setting if found.get(key) != self.setting[key]]
            raise GradclipError(
                f"{self.path} belongs to another tuning ({', '.join(changed) or 'schema'} differ"
                f"{'s' * (len(changed) < 2)}): give --fresh to begin again, or another --out"
            )

    def _write(self) -> None:
        rows = [
            {"policy": t.policy, "factor": t.factor, "steps": t.steps, "outcome": o.to_dict()}
            for t, o in self.outcomes.items()
        ]
        data = {"schema": SCHEMA, "setting": self.setting, "trials": rows}
        partial = self.path.with_suffix(f".partial-{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(encode_row(data))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            raise GradclipError(
                f"{self.path} cannot be written ({error.strerror}): give an --out that can"
            ) from error


def _trial_of(row: object) -> tuple[Trial, Outcome]:
    """Return a trial and its outcome from a row of the file; a ValueError names a wrong value."""
    if not isinstance(row, dict):
        raise WrongValue("a trial", row, "an object")
    policy, factor = text_of(row, "policy"), number_of(row.get("factor"), "factor")
    parse(policy)
    if not 0 < factor < math.inf:
        raise WrongValue("factor", row["factor"], "a finite number above 0")
    trial = Trial(policy, factor, whole_of(row, "steps", low=1))
    return trial, Outcome.from_dict(_object(row, "outcome"))


def _object(row: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = row.get(key)
    if not isinstance(value, dict):
        raise WrongValue(key, value, "an object")
    return value
