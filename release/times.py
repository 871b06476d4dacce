"""What an import costs: `python -m release.times` prints milliseconds, the least of several runs.

CPU time, since other programs on the machine do not change it much: the user's and the system's,
of the child that imports. A row with "beyond" subtracts what the other import costs alone, and the
row with "and" after it too. Those rows say what the first use of a name costs, since `gradclip` and
`gradclip.torch` import a module when one of its names is first used.
"""

from __future__ import annotations

import os
import subprocess
import sys

ROUNDS = 7
ROWS = (
    ("import gradclip, beyond numpy", "import gradclip", "import numpy"),
    ("and gradclip.by_norm(1.0)", "import gradclip; gradclip.by_norm(1.0)", "import numpy"),
    ("import gradclip.numpy, beyond numpy", "import gradclip.numpy", "import numpy"),
    ("import gradclip.torch, beyond torch", "import torch, gradclip.torch", "import torch"),
    ("and from gradclip.torch import attach", "import torch; from gradclip.torch import attach",
     "import torch"),
    ("import gradclip.jax, beyond jax and optax", "import jax, optax, gradclip.jax",
     "import jax, optax"),
    ("gradclip --help", "from gradclip.cli import app; app(['--help'], standalone_mode=False)",
     "pass"),
)  # fmt: skip
"""What is measured, its code, and the code whose time is subtracted."""


def cpu_seconds(code: str) -> float:
    """Return the CPU time of a fresh Python that runs the code."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=os.environ | {"TERM": "dumb"},
        check=True,
    )  # fmt: skip
    assert done.returncode == 0
    after = os.times()
    own = after.children_user - before.children_user
    return own + after.children_system - before.children_system


def beyond(code: str, other: str, rounds: int = ROUNDS) -> float:
    """Return the CPU time of the code beyond another's, each the least of its runs."""
    pairs = [(cpu_seconds(code), cpu_seconds(other)) for _ in range(rounds)]
    return min(mine for mine, _ in pairs) - min(theirs for _, theirs in pairs)


if __name__ == "__main__":
    for text, code, other in ROWS:
        print(f"{1000 * beyond(code, other):6.0f} ms  {text}", flush=True)
