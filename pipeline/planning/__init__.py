"""A source -> shards, and which of them are still to do.

plan             sources of every kind as shards
patterns         paths, globs, braces and URLs as the files and folders that they name
found            those, as lists side by side
tar              long tars in ranges
parquet          tables in groups of row groups
files            files in groups
uri_lists        lists of addresses as people write them
list_lines       their lines and quotes, read strictly
shard_ids        ids that stay the same while a source grows
pending          planned shards against committed ones
survey           a plan in figures, without opening an image
"""
