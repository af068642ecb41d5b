"""Training a checkpoint, in stages, resumable.

run              a recipe from its first stage to its checkpoint
config           the recipe
trainer          one stage: steps, averages, snapshots
losses           what is minimised
canvases         batches as the model sees them: pixels, or latents of a frozen autoencoder
adversary        the discriminator of the texture stages
photos           photos -> crops
stream           where a stage's batches are, for resuming
photo_memory     decoded photos kept in memory
moving_photos    clips made of photos, by a moving camera
requirements     what a run would miss later, asked first
run_folder       a run's state on disk or in a bucket
"""
