"""The loader beside others (docs/results/loader.md)."""
