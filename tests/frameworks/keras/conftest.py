"""The cases run once for each backend, which Keras chooses when it is imported."""

from __future__ import annotations

import os

collect_ignore = [] if "KERAS_BACKEND" in os.environ else ["cases"]
