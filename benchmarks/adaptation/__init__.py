"""DTF for frozen fixed-rate tokenizers: what `tatok adapt` gives them, measured (docs/results/adapt.md)."""
