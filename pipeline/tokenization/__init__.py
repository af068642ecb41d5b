"""Work on one shard, clips -> batches -> rows, and what must be known of all (dedup, fingerprint); no Ray.

tokenize         batches that fit the device
shard_decoder    a shard's samples -> clips, filtered, without duplicates
chunks           clips in chunks, by bytes or by time
loading          the job's tokenizer, in whichever process
spec             what the pipeline must know of a tokenizer in another process
fingerprint      everything that rows depend on
dedup            equal bytes become one row
accelerator_errors  what a CUDA error means for the process
allocator        freed memory stays with the process
"""
