"""Training a potential: losses, optimisers, steps, checkpoints, metrics."""
