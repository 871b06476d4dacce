"""Ignite warns of what torch does when it is imported: that happens here, once."""

# pyright: reportMissingImports=false
from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ignite.engine
    import ignite.handlers  # noqa: F401
