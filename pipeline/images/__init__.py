"""Encoded images -> pixels.

decode           any image that Pillow reads, upright and in sRGB
colour           colour profiles and alpha
crops            which part of an image becomes a row
simplejpeg       the quick way for regular JPEGs
extras           HEIC, HEIF and JPEG XL, by plug-ins
jxl_header       the size of a JPEG XL picture
beside           a refused image again, without what stands beside its pixels
png_chunks       ... of PNGs, and whether all rows are there
jpeg_segments    ... of JPEGs, and whether all pixels are there
webp_chunks      ... of WebPs
gif_blocks       ... of GIFs
tiff_tags        ... of TIFFs
boxes            ... of AVIF, HEIF, JPEG 2000 and JPEG XL
"""
