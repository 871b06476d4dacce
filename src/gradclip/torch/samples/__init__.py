"""The gradient of each sample of a batch: what is kept of a backward pass, norms, weighted sums."""
