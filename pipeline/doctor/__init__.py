"""Before a run: what is wrong with a job, and what it would cost.

examine          every check in order, then a forecast
notes            what the checks have found, each with its remedy
job_checks       storage options, source, output, checkpoint
cluster_checks   the cluster, its versions, its GPUs
tokenizer_checks  a tokenizer by itself: steady, alike in every batch, invertible
dry_run          a few samples through the whole job
option_names     settings as users write them
recorded_rates   speeds on record, where there is no GPU
"""
