"""The job on Ray, the only room that imports it (beside jobs/submission/ray_jobs).

driver           shards -> actors; starts Ray where none runs
workers/         tokenizers and decoders
scheduler        which shard goes where, and when again
crew             actors started and replaced, more as the cluster grows; what is asked of Ray
loans            who is idle helps with the shards of others
leases           a shard's attempts, and when they count as failed
slots            places for shards on tokenizers; decoders that wait for one
sizes            how many actors of which kind
gpu_wait         a cluster whose GPUs are not there yet
probe            what nodes have; work on one of them
hashing          samples hashed, for dedup
metrics          figures as Ray metrics
training         training by several workers
"""
