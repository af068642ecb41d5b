"""Frozen continuous autoencoders, on whose latents a model may work in place of pixels.

frozen           the seam: what an autoencoder is, how it is named, loaded, hashed and checked
canvas           pixels <-> what a model computes on: pixels themselves, or latents
distances        how far the drawn picture moves when latents do
latent_memory    latents of random crops, encoded once and kept
"""
