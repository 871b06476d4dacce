"""The record of a training that a framework runs, and the page that is made of the record."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..errors import GradclipError
from ..record import RecordWriter
from ..record.place import IfExists, check_if_exists
from ..report import write_report
from ..torch.clipper import Clipper
from ..torch.recorder import Recorder
from ..torch.script.losses import Losses

__all__ = ["RunFiles"]


class RunFiles:
    """Writes one record for all clippers of a training, and the page at the end.

    Args:
        record: the path of the record; None writes none.
        report: the path of the page; None writes none. Without `record` the record lies beside the
            page, with the suffix ".jsonl".
        if_exists: see `gradclip.torch.record`.

    Raises:
        PolicyError: `if_exists` is wrong.
        GradclipError: the packages for the page are not installed.

    Attributes:
        losses: what the framework calls backward on; None while nothing is recorded.
    """

    def __init__(
        self,
        record: str | os.PathLike[str] | None,
        report: str | os.PathLike[str] | None,
        if_exists: IfExists = "part",
    ) -> None:
        check_if_exists(if_exists)
        self._report = None if report is None else Path(report)
        beside = None if self._report is None else self._report.with_suffix(".jsonl")
        self._record = beside if record is None else Path(record)
        self._if_exists: IfExists = if_exists
        self._writer: RecordWriter | None = None
        self._recorders: list[Recorder] = []
        self.losses: Losses | None = None
        if report is not None and not all(map(importlib.util.find_spec, ("bokeh", "jinja2"))):
            # At the end of the training that would be late.
            raise GradclipError("report= needs Bokeh and Jinja2: pip install 'gradclip[report]'")

    def begin(self, clipped: Sequence[tuple[Clipper, Sequence[torch.optim.Optimizer]]]) -> None:
        """Observe clippers from now on, each with the optimizers whose steps it clips.

        Raises:
            RecordError: the record cannot be written.
        """
        if self._record is None:
            return
        policy = str(clipped[0][0].policy)
        writer = RecordWriter(self._record, if_exists=self._if_exists, policy=policy)
        losses = Losses(lambda name, text: writer.event(name, text))
        self._writer, self.losses = writer, losses
        self._recorders = [
            Recorder(
                writer,
                clipper,
                optimizers[0],
                name=" + ".join(dict.fromkeys(type(each).__name__ for each in optimizers)),
                loss=partial(losses.take, object()),
            )
            for clipper, optimizers in clipped
        ]

    def end(self, status: str) -> None:
        """Write what is held, and the page; a second call does nothing.

        Args:
            status: how the training ended: "ok", or "error: " and the error.
        """
        if self._writer is None:
            return
        writer, recorders = self._writer, self._recorders
        self._writer, self._recorders, self.losses = None, [], None
        for recorder in recorders:
            recorder.close(status)
        if self._report is not None and writer.counts["steps"]:
            write_report(writer.path, self._report)
