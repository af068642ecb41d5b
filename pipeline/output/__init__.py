"""The dataset on disk: one part a shard, one commit a part.

tables           facts of clips and batches of tokens -> the columns of rows
parquet          tables -> one Parquet file in a stream
commit           publish a part exactly once; what is published
manifest         run document, manifest, _SUCCESS
"""
