"""Around `optimizer.step()`: hooks, the fused factor, skipped steps."""
