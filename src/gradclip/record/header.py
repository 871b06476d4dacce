"""The first row of a record: what runs, and in which job."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from .job import Job
from .schema import SCHEMA

__all__ = ["new_header"]


def new_header(
    policy: str | None, command: Sequence[str] | None, versions: Mapping[str, str] | None
) -> dict[str, object]:
    """Return the header of a record that begins now.

    Args:
        policy: the text form of the run's policy, or None.
        command: the command line; None takes ``sys.argv``.
        versions: from package names to versions; None takes the installed versions. Not mutated.
    """
    header: dict[str, object] = {
        "kind": "header",
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "gradclip": _version("gradclip"),
        "policy": policy,
        "command": list(sys.argv if command is None else command),
        "versions": dict(_versions() if versions is None else versions),
    }
    job = Job.of(os.environ)
    return header if job is None else header | {"job": job.to_dict()}


def _version(package: str) -> str | None:
    from importlib import metadata  # It brings the email package along; a reader needs neither.

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    found = {package: _version(package) for package in ("torch", "numpy")}
    return python | {package: version for package, version in found.items() if version}
