"""What each command needs beside a plain install, and what pyproject.toml says brings it."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
DEVELOPERS = {"bench", "experiments", "docs", "test", "dev"}
"""Extras of those who work on gradclip; no command of a user needs them."""
EXTRAS: Mapping[str, list[str]] = {
    name: needed
    for name, needed in PROJECT["optional-dependencies"].items()
    if name not in DEVELOPERS
}

SCRIPT = """\
import torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    weight.square().sum().backward()
    optimizer.step()
"""


@dataclass(frozen=True)
class Command:
    """A command line in a folder with the script `s.py` and the record `ok.jsonl`.

    Attributes:
        args: what follows `gradclip`.
        needs: the extras that bring its packages, in the order in which the command asks for them.
        named: the extra that the message names; None: the first of `needs` that is missing.
        spawns: whether it trains in processes of its own, which an import blocker does not reach.
    """

    args: tuple[str, ...]
    needs: tuple[str, ...] = ()
    named: str | None = None
    spawns: bool = False

    def missing(self, extras: Iterable[str]) -> str | None:
        """Return the extra that the command asks for where only `extras` are; None: it works."""
        lacking = [name for name in self.needs if name not in set(extras)]
        return (self.named or lacking[0]) if lacking else None


COMMANDS = {
    "help": Command(("--help",)),
    "version": Command(("--version",)),
    "doctor": Command(("doctor",)),
    "doctor in JSON": Command(("doctor", "--json")),
    "methods": Command(("methods",)),
    "one method": Command(("methods", "zclip")),
    "diagnose": Command(("diagnose", "ok.jsonl")),
    "explain": Command(("explain", "exploding")),
    "advise": Command(("advise", "ok.jsonl")),
    "watch": Command(("watch", "--once", "ok.jsonl")),
    "report": Command(("report", "ok.jsonl"), ("report",)),
    "export": Command(("export", "ok.jsonl"), ("figure",)),
    "run": Command(("run", "--clip", "norm:1", "s.py"), ("torch",)),
    "run to TensorBoard": Command(
        ("run", "--sink", "tensorboard:events", "s.py"), ("torch", "tensorboard")
    ),
    "run to W&B": Command(("run", "--sink", "wandb:p", "s.py"), ("torch", "wandb")),
    "run to MLflow": Command(("run", "--sink", "mlflow:e", "s.py"), ("torch", "mlflow")),
    "run to trackio": Command(("run", "--sink", "trackio:p", "s.py"), ("torch", "trackio")),
    "tune": Command(("tune", "--steps", "2", "s.py"), ("torch",), spawns=True),
    "demo": Command(("demo", "--steps", "1"), ("report", "torch"), named="demo", spawns=True),
}


MODULES = {
    "gradclip": (),
    "gradclip.numpy": (),
    "gradclip.torch": ("torch",),
    "gradclip.jax": ("jax",),
    "gradclip.integrations.fastai": ("fastai",),
    "gradclip.integrations.keras": ("keras",),
    "gradclip.integrations.lightning": ("lightning",),
    "gradclip.integrations.transformers": ("transformers",),
}
"""What a user imports, and the extras that bring its packages."""


def with_others(extra: str) -> set[str]:
    """Return an extra and those that it brings along, as `gradclip[a,b]` does."""
    found = {extra}
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                found |= with_others(other)
    return found


def requirements(extras: Iterable[str]) -> list[str]:
    """Return what pip is to install for the package with these extras."""
    wanted = [*PROJECT["dependencies"]]
    for extra in {each for name in extras for each in with_others(name)}:
        wanted += [text for text in EXTRAS[extra] if Requirement(text).name != PROJECT["name"]]
    return wanted


def present(versions: Mapping[str, str]) -> set[str]:
    """Return the extras all of whose requirements these installed distributions meet."""

    def met(text: str) -> bool:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    return {name for name in EXTRAS if all(map(met, requirements([name])))}


def others_than(wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return the distributions and modules here that these requirements do not bring along."""
    owners = {
        module: {canonicalize_name(name) for name in names}
        for module, names in importlib.metadata.packages_distributions().items()
    }
    brought = _closure(wanted) | {PROJECT["name"]}
    return {
        "distributions": sorted(set().union(*owners.values()) - brought),
        "modules": sorted(module for module, names in owners.items() if not names & brought),
    }


def _closure(wanted: Iterable[str]) -> set[str]:
    """Return the names of what these requirements install, with all that those require."""
    found: set[str] = set()
    queue = [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            further = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        queue += map(Requirement, further)
    return found


def write_inputs(folder: Path) -> None:
    """Write the script and the record that the commands read."""
    rows: list[dict[str, object]] = [{"kind": "header", "schema": 1}]
    rows += [{"kind": "step", "step": step, "norm": 1.0, "loss": 2.0} for step in range(1, 30)]
    (folder / "s.py").write_text(SCRIPT)
    (folder / "ok.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_outcome(name: str, code: int, message: str, missing: str | None) -> None:
    """Assert that a command worked, or said in one sentence which extra it needs."""
    if missing is None:
        assert code == 0, (name, code, message)
    else:
        assert code == 2, (name, code, message)
        assert message.endswith(f" pip install 'gradclip[{missing}]'\n"), (name, message)
        assert message.count("\n") == 1, (name, message)
        assert " needs " in message, (name, message)
