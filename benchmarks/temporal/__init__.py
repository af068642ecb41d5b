"""Clips: temporal TaTok against frame by frame (docs/results/temporal.md)."""
