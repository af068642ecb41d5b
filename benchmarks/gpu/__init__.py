"""What a GPU is worth to tatok: agreement with the CPU, speed, failures; measured in minutes by `kit`."""
