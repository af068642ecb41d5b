"""The tokenizer: images and clips -> token sequences, and back.

tokenizer        the public face
codec            the steps between pixels and codes, of whole batches
encoding         the device's part of a batch: one graph, one wait
launching        batches ahead of their rows; CUDA graphs by shape
clips            frames that may follow the frame before
frames           the arithmetic of frames in a clip
"""
