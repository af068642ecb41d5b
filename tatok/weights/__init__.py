"""The checkpoint that comes with tatok; CARD.md tells what it is."""
