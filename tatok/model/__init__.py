"""The model: pixels -> codes -> pixels, the prior over codes, and the filter that drops what the rest already says.

autoencoder      the network: encoder, global tokens, decoder
config           its sizes
layers           transformer blocks
pixel_layers     convolutions before the encoder and behind the decoder
patches          images as patches, patches as images
pixels           bytes <-> floats, images in batches
quantizer        vectors -> codes
prior            how probable each code is, the rest given
dtf              Dynamic Token Filtering: which patch tokens are kept
tables           what depends on the shape alone, computed once
row_chunks       large batches some rows at a time
checkpoint       a model and its settings as a folder
"""
