"""tatok beside others who tokenize the same photos (docs/results/peers.md)."""
