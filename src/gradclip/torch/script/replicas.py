"""All processes of a job run under `gradclip run`, with the same policy: replicas stay the same.

Each process says its policy in the job's store as soon as the process group exists, and looks for
the others before its first clipped step. So a process that never steps disturbs nobody, and a
process without gradclip is found although it cannot answer.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch.distributed as dist

from ..processes.agree import Round, Said, many_processes, store_of_the_job
from ..processes.making import and_the_job, value_of

__all__ = ["Replicas"]

TOPIC = "gradclip run"
PATIENCE = 10.0
"""The seconds that a process waits at its first step for the word of the others."""


class Replicas:
    """Compares the settings of this process with the other processes of the job.

    Args:
        settings: what must be equal in all processes.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._said: Said = {name: value_of(value) for name, value in settings.items()}
        self._round: Round | None = None
        self._world: object = None
        self._compared: object = None

    def watch(self, undo: ExitStack) -> None:
        """Announce the settings wherever a process group begins, until the stack is closed."""
        if not dist.is_available():
            return
        original = dist.init_process_group

        @functools.wraps(original)
        def init_process_group(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self.announce()

        for module in list(sys.modules.values()):  # Some have imported the function by its name.
            if getattr(module, "__dict__", {}).get("init_process_group") is original:
                undo.callback(setattr, module, "init_process_group", original)
                vars(module)["init_process_group"] = init_process_group

    def announce(self) -> None:
        """Say the settings to the other processes, once for each job; wait for nobody."""
        store = store_of_the_job()
        if store is None or self._world is dist.group.WORLD:
            return
        self._world = dist.group.WORLD
        (everyone,) = and_the_job([])
        self._round = Round.begin(store, TOPIC, everyone)
        self._round.show(self._said)
        self._round.say(self._said)

    def compare(self) -> None:
        """Raise a PolicyError if another process has other settings, or none."""
        if not many_processes() or self._compared is dist.group.WORLD:
            return
        self._compared = dist.group.WORLD
        self.announce()
        if self._round is None:
            return
        end = time.monotonic() + PATIENCE

        def absent(rank: int) -> str | None:
            if time.monotonic() < end:
                return None
            return (
                f"--clip would clip in the process {dist.get_rank()} and not in the process "
                f"{rank}, which does not run under gradclip, so the replicas would differ: start "
                "every process under gradclip, as torchrun --nproc-per-node=N -m gradclip run …"
            )

        fault = self._round.fault(self._said, absent)
        if fault is not None:
            raise fault
