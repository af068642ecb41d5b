"""TaTok over a frozen continuous autoencoder, beside the bundled checkpoint (docs/results/adapt.md).

tiny_autoencoder  the autoencoder, as a user's own module
figures           what both rebuild of held-out photos, at equal rates
pictures          the same to look at
distances         what the choice of distances between latents is worth, before any training
run               trains, or resumes, and measures
"""
