"""Show a run as it goes: bounded state from a growing record, drawn in a terminal."""

from .state import LayerNews, LiveOptimizer, LiveRun

__all__ = ["LayerNews", "LiveOptimizer", "LiveRun"]
