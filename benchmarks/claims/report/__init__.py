"""docs/results/claims.md out of what the claims bench measured."""
