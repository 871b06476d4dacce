"""The one pass that every backend shares, and its result."""
