"""What clipping does and does not do, measured: `python -m experiments`."""
