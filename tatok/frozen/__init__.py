"""TaTok over a frozen fixed-rate tokenizer: its codes for the patches, TaTok's globals, prior and filter beside them.

config           the sizes, and whose codes
under            the frozen tokenizer, loaded when it is asked
model            embeddings of its codes -> globals and codes -> pixels
filling          what stands where a code was dropped
"""
