"""The job that a scheduler starts again: which attempt of which job this process is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """One attempt of a job.

    Attributes:
        id: the id that the scheduler gave the job; all attempts have the same.
        attempt: the number of requeues and the number of elastic restarts before this attempt.
    """

    id: str
    attempt: tuple[int, int]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Job | None:
        """Return the job that Slurm or torchrun describes in the environment, or None.

        Args:
            environment: the environment variables; not mutated.
        """
        id = environment.get("SLURM_JOB_ID") or environment.get("TORCHELASTIC_RUN_ID")
        if not id:
            return None
        names = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        requeues, restarts = (_count(environment.get(name)) for name in names)
        return cls(id, (requeues, restarts))

    @classmethod
    def read(cls, value: object) -> Job | None:
        """Return the job of a header's key `job`, or None if the value is not a job."""
        match value:
            case {"id": str(id), "attempt": [int(requeues), int(restarts)]}:
                return cls(id, (requeues, restarts))
            case _:
                return None

    def to_dict(self) -> dict[str, object]:
        """Return the job as JSON values, for the header of a record."""
        return {"id": self.id, "attempt": list(self.attempt)}

    def follows(self, other: Job | None) -> bool:
        """Return whether this is a later attempt of the same job."""
        return other is not None and self.id == other.id and self.attempt > other.attempt


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
