"""Evaluation: how good the pictures are, at which token count, and at which threshold that count is met.

comparison       scores of several ways to keep tokens
policies         those ways: DTF, random, a grid, ...
calibration      the DTF threshold for a wanted mean count
diagnostics      codebook use; whether the prior is honest
distances        between sets of images: Frechet and kernel
features         networks that compare images
requirements     what measuring needs, asked first
complexity       how much there is in an image, by PNG
"""
