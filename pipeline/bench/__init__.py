"""How fast a job is, against what its stages allow.

speed            a run against its speed of light
stages           each stage by itself
model_rates      the model's stages by themselves
own_processes    work in processes that end with it
trace            a run's shards over time
"""
