"""A clipping method as data: its measure, its threshold and its response."""

from . import recipes as recipes  # Each recipe enters itself in the catalogue.
