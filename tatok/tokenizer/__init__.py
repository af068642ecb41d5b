"""The tokenizer: images and clips -> token sequences, and back.

protocol         what a tokenizer is, to the pipeline and to who brings one
tokenizer        the public face of TaTok
images           what people call an image -> pixels, and tokens that say what was done
named            the one that a job names: a user's file or module, an adapter
fixed_rate       a user's own, made to what the pipeline calls
codec            the steps between pixels and codes, of whole batches
encoding         the device's part of a batch: one graph, one wait
launching        batches ahead of their rows; CUDA graphs by shape
clips            frames that may follow the frame before
following        one frame of every clip, in the cheapest of three ways
frames           the arithmetic of frames in a clip
beneath          checkpoints of every kind, and the frozen tokenizer beneath one
"""
