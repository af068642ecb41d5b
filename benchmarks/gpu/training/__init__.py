"""Training on a machine that may be taken away."""
