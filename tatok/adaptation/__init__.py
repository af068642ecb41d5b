"""Training TaTok over a frozen tokenizer (`tatok adapt`), by the trainer of `tatok train`.

settings         what is adapted, and the recipe
losses           what is minimised
trainer          the trainer of these models
run              settings -> a checkpoint
"""
