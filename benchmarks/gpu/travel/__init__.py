"""What goes to a bare machine with a GPU, and what comes home."""
