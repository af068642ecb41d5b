"""Work on one shard, clips -> batches -> rows, and what must be known of all (dedup, fingerprint); no Ray.

tokenize         chunks in, rows out, in batches that fit the device
ahead            batches that the device has before the last one is done
reorder          clips that wait for others of their shape, and the order of rows
clip_chunk       clips as columns, for their way between processes
shard_decoder    a shard's samples -> clips, filtered, without duplicates
shared_decoding  samples decoded by several, in their order
chunks           clips in chunks, by bytes or by time
loading          the job's tokenizer, in whichever process
spec             what the pipeline must know of a tokenizer in another process
fingerprint      everything that rows depend on
dedup            equal bytes become one row
accelerator_errors  what a CUDA error means for the process
"""
