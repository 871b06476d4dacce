"""The examples of an integration run only where its framework is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_INTEGRATIONS = Path(__file__).parent / "gradclip" / "integrations"
collect_ignore = [
    str(module)
    for module in _INTEGRATIONS.glob("[!_]*.py")
    if importlib.util.find_spec(module.stem) is None
]
# Keras needs a backend when it is imported: its cases in tests/frameworks run the examples.
collect_ignore += [str(_INTEGRATIONS / "keras")]
