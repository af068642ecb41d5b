"""Encoded images -> pixels.

decode           any image that Pillow reads, upright and in sRGB
colour           colour profiles and alpha
crops            which part of an image becomes a row
simplejpeg       the quick way for regular JPEGs
"""
