"""`gradclip doctor`: show the paths that run on this machine, and the paths that do not."""

from __future__ import annotations

import importlib
import platform
import sys
from dataclasses import asdict
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import kernel
from ..show.safe import printable
from ..version import __version__
from .output import say_json

__all__ = ["doctor"]

# The purpose of each package, and the extra that installs it.
_PACKAGES = (
    ("numpy", "gradclip.numpy", None),
    ("torch", "gradclip.torch, run, demo", "torch"),
    ("jax", "gradclip.jax", "jax"),
    ("optax", "gradclip.jax", "jax"),
    ("bokeh", "report, demo", "report"),
    ("matplotlib", "export", "figure"),
    ("pandas", "Run.to_pandas", "pandas"),
)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Show the paths that run on this machine: the C kernel, each framework, the report."""
    rows = _rows()
    if json:
        found = {name.strip(): text for name, text in rows}
        say_json({**found, "kernel": asdict(kernel.status())})
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, printable(text))
    Console(highlight=False, markup=False).print(table)


def _rows() -> list[tuple[str, str]]:
    rows = [
        ("gradclip", __version__),
        ("Python", f"{platform.python_version()}, {platform.platform()}"),
        ("C kernel", _kernel(kernel.status())),
    ]
    for name, purpose, extra in _PACKAGES:
        rows.append((name, _package(name, purpose, extra)))
        if name == "torch" and "torch" in sys.modules:
            rows.append(("  fold", _fold()))
    return rows


def _kernel(status: kernel.KernelStatus) -> str:
    if status.available:
        return f"yes: {status.isa}, {status.library}"
    return f"NO: {status.reason} Until then NumPy and torch do its work, slower."


def _package(name: str, purpose: str, extra: str | None) -> str:
    """Import the package, since an installed package may be broken, and describe the result."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            return f"NO: installed but broken: {error}"
        return f"NO, for {purpose}: pip install 'gradclip[{extra}]'"
    except Exception as error:
        return f"NO: installed but broken: {type(error).__name__}: {error}"
    device = _device(module) if name == "torch" else ""
    return f"{module.__version__}{device}"


def _fold() -> str:
    """Return the fused optimizers that take the clip factor in a trial step."""
    from ..torch.step.fused import seen_on

    torch = sys.modules["torch"]
    devices = ["cpu", *(name for name in ("cuda", "xpu") if getattr(torch, name).is_available())]
    found = {device: seen_on(device) for device in devices}
    yes = [f"fused {', '.join(kinds)} on {device}" for device, kinds in found.items() if kinds]
    if not yes:
        return "NO: no fused optimizer takes the clip factor; attach multiplies the gradients."
    return f"yes: {'; '.join(yes)} take the clip factor. Others: see clipper.scaled_because."


def _device(torch: ModuleType) -> str:
    """Return the devices on which torch can compute."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f", {', '.join(names)}"
    if torch.backends.mps.is_available():
        return ", Apple GPU"
    return f", no accelerator, {torch.get_num_threads()} threads"
