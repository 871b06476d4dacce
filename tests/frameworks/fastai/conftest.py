"""fastai warns of what it does itself when it is imported: that happens here, once."""

# pyright: reportMissingImports=false
from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import fastai.callback.schedule
    import fastai.callback.training  # noqa: F401
