"""Says at exit which clippers were attached and never saw a step."""

from __future__ import annotations

import atexit
import sys
from collections import Counter

__all__ = ["Waiting"]

# Descriptions, not clippers: these outlive the clipper, which must not live on for them.
_unseen: Counter[str] = Counter()


class Waiting:
    """A clipper that waits for its first step, until `end` is called.

    Args:
        text: the description of the clipper.
    """

    def __init__(self, text: str) -> None:
        self._text: str | None = text
        _unseen[text] += 1

    def end(self) -> None:
        """Note that a step came, or that none is waited for any more."""
        if self._text is not None:
            _unseen[self._text] -= 1
            self._text = None


@atexit.register
def _warn_unseen() -> None:
    for text in +_unseen:
        say = f"gradclip: warning: {text} was attached and never saw optimizer.step()"
        print(f"{say}: nothing was clipped", file=sys.stderr)
