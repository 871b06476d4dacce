"""Gradients that are spread over processes."""
