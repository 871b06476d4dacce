"""Every case there is, in the order of the table."""

from __future__ import annotations

from . import (
    cases_norm,
)
from .row import Case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *cases_norm.CASES,
)
