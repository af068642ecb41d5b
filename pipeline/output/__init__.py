"""The dataset on disk: one part a shard, one commit a part.

tables           clips and sequences -> Arrow tables
parquet          tables -> one Parquet file in a stream
commit           publish a part exactly once; what is published
manifest         run.json, manifest.json, _SUCCESS
"""
