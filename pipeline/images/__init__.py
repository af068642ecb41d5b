"""Encoded images -> pixels.

decode           any image that Pillow reads, upright and in sRGB
colour           colour profiles and alpha
crops            which part of an image becomes a row
simplejpeg       the quick way for regular JPEGs
extras           HEIC, HEIF and JPEG XL, by plug-ins
beside           a refused image again, without what stands beside its pixels
containers       how files of each format are built
"""
