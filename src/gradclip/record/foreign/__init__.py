"""Logs of other programs, which `gradclip import` turns into records."""

from .convert import Imported, import_log
from .log import Log
from .names import ROLES
from .open import read_log

__all__ = ["ROLES", "Imported", "Log", "import_log", "read_log"]
