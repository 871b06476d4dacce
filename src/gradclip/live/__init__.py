"""A run as it goes: bounded state fed by a growing record, and a terminal's picture of it."""

from .state import LayerNews, LiveOptimizer, LiveRun

__all__ = ["LayerNews", "LiveOptimizer", "LiveRun"]
