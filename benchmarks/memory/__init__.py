"""How much memory, and whether it stays."""
