"""Finished runs on disk: a file for each task, a line for each run, by its setting's text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .setting import Setting

__all__ = ["RESULTS", "Store"]

RESULTS = Path(__file__).parent / "results"
Figures = dict[str, Any]


class Store:
    """Reads and writes the results of a folder. A stored run is not repeated.

    A file is replaced as a whole after each run: a kill loses the present run alone.
    Numbers that JSON does not have are the strings "inf", "-inf" and "nan" in the file.
    """

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Figures]] = {}

    def runs(self, task: str) -> dict[str, Figures]:
        """Return the figures of a task's finished runs, by key. Do not change them."""
        if task not in self._files:
            path = self._path(task)
            found = json.loads(path.read_text("utf-8")) if path.exists() else {"runs": {}}
            self._files[task] = _map(found["runs"], _parsed)
        return self._files[task]

    def get(self, setting: Setting) -> Figures | None:
        """Return the figures of a finished run, or None."""
        return self.runs(setting.task).get(setting.key)

    def put(self, setting: Setting, figures: Figures) -> None:
        """Write the figures of a run to the disk."""
        runs = self.runs(setting.task)
        runs[setting.key] = figures
        lines = [
            f"{json.dumps(key)}: {json.dumps(_map(runs[key], _written), allow_nan=False)}"
            for key in sorted(runs)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._path(setting.task).with_suffix(".partial")
        partial.write_text('{"runs": {\n' + ",\n".join(lines) + "\n}}\n", "utf-8")
        partial.replace(self._path(setting.task))

    def _path(self, task: str) -> Path:
        return self.folder / f"{task}.json"


def _map(data: Any, change: Any) -> Any:
    if isinstance(data, dict):
        return {key: _map(value, change) for key, value in data.items()}
    if isinstance(data, list):
        return [_map(value, change) for value in data]
    return change(data)


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _parsed(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
