"""How image files are built: what stands beside the pixels, and whether all of these are there.

png_chunks       PNGs, and whether all rows are there
jpeg_segments    JPEGs, and whether all pixels are there
webp_chunks      WebPs
gif_blocks       GIFs
tiff_tags        TIFFs
boxes            AVIF, HEIF, JPEG 2000 and JPEG XL
jxl_header       the size of a JPEG XL picture
"""
