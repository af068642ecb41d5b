"""How fast, and what it costs."""
