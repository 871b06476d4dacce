"""The gradients of one process: their memory, their norms, and how they are scaled."""
