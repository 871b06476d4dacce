"""What was attached and never saw a step: said at exit, since it clipped nothing."""

from __future__ import annotations

import atexit
import sys
from collections import Counter
from collections.abc import Callable

__all__ = ["wait_for_a_step"]

# Descriptions, not clippers: these outlive the clipper, which must not live on for them.
_unseen: Counter[str] = Counter()


def wait_for_a_step(text: str) -> Callable[[], None]:
    """Note what waits for its first step; return what is to be called once that came."""
    waits = [text]
    _unseen[text] += 1

    def stop() -> None:
        if waits:
            _unseen[waits.pop()] -= 1

    return stop


@atexit.register
def _warn_unseen() -> None:
    """Say at exit what was attached and never saw a step."""
    for text in +_unseen:
        say = f"gradclip: warning: {text} was attached and never saw optimizer.step()"
        print(f"{say}: nothing was clipped", file=sys.stderr)
