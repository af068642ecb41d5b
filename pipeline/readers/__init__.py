"""A shard's samples, whatever it is kept in.

read             the reader for a shard
tar              WebDataset tars
tar_headers      what tars are opened, checked and ended by
tar_links        links in tars, and what they lead to
parquet          tables with bytes or addresses in a column
files            single files, and lists of them
fetch            many addresses at a time
columns          which columns hold the image, the key, the words
inline_data      images that are texts, where addresses are expected
formats          image or video, by the first bytes
file_groups      folders of files as shards of about equal work
unreadable       a source that is there and is not what it should be
"""
