"""Measures gradclip against its strongest rivals, in one process: `python -m benchmarks`."""
