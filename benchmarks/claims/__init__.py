"""The claims bench: TaTok against fixed-rate tokens, and generators trained on both (docs/results/claims.md)."""
