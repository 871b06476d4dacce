"""Measures what clipping does and does not do: `python -m experiments`."""
