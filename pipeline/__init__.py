"""The tokenization pipeline: shards in, Parquet parts out."""
