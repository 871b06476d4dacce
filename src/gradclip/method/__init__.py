"""A clipping method as data: its measure, its threshold and its response."""
