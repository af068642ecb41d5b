"""Loading: the tokens of a dataset as packed batches, in a seeded order, from any rank and worker.

dataset          TokenDataset, the public face
parts            a dataset's part files
rows             one row, and the sequence in it
lookup           rows by key and by sample id
order            the seeded order of an epoch
windows          row groups read ahead and shuffled
stream           the batches of one rank and worker, resumable
packing          which rows share a batch
batches          rows -> tensors
"""
