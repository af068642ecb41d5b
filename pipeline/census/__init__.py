"""How many samples a source holds, counted a second time by other means than the readers'.

It imports nothing but schemas, so that no mistake of planning or readers can be repeated here; `verify` compares the
two. What a source is, both have from docs/guides/sources.md.

source           patterns -> the count of every source file
listing          folders and globs, listed plainly
tars             a tar's samples, by its headers
tar_headers      512-byte blocks -> the names of members
lists            a list's rows, by its lines
tables           a Parquet file's rows, by its footer
forward          a file read forward: skipped through, decompressed
"""
