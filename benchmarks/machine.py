"""The conditions of a figure besides the code: the machine, the versions, their state."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "describe", "free_bytes", "load", "own_results", "stored"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("gradclip", "torch", "numpy", "jax", "jaxlib", "optax", "timm", "opacus")


def describe() -> dict[str, Any]:
    """Return the machine, the versions and the commit, as plain data for JSON."""
    import torch

    from gradclip import kernel

    found = kernel.status()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(
            _git("status", "--porcelain", "--", "src", "native", "benchmarks/*.py")
        ),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory_bytes": _meminfo("MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "load": load(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "kernel": {"available": found.available, "isa": found.isa, "reason": found.reason},
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GRADCLIP_KERNEL", "XLA_FLAGS")
            if name in os.environ
        },
    }


def own_results() -> Path:
    """Return the folder with the results of this kind of processor."""
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", _processor().lower()).strip("-")
    folder.mkdir(exist_ok=True)
    return folder


def stored(name: str) -> list[dict[str, Any]]:
    """Return what is stored under a name, as in "full.json", of all processors that were met."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"*/{name}"))]


def load() -> float | None:
    """Return the number of processes ready to run in the last minute; None if unknown."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def free_bytes() -> int:
    """Return the free memory in bytes; a large number if the system does not say."""
    return _meminfo("MemAvailable") or 1 << 40


def _meminfo(name: str) -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _caches() -> dict[str, str]:
    """Return the size of each cache of the first core, as in {"L3": "32768K"}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
