"""A generator of token sequences: the model that one trains on a dataset, small enough to be an example.

config           its shapes
model            the transformer, its loss, and sampling from it
layers           the layers, with a cache for sampling
sampling         what sampling keeps from step to step
data             rows -> training sequences
recipe           how it is trained, on which budget, and what it came to
requirements     what would end a training later, asked first
trainer          one step at a time, saved state, held-out losses
training         a run, resumable
checkpoint       a generator as a folder
"""
