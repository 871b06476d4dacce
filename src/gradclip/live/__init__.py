"""Show a run in the terminal during the run, with bounded memory for a growing record."""

from .state import LayerNews, LiveOptimizer, LiveRun

__all__ = ["LayerNews", "LiveOptimizer", "LiveRun"]
