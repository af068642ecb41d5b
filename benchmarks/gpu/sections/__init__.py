"""What the GPU kit measures: one file a section, each in a process of its own."""
