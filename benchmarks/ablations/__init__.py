"""What each part of the training recipe is worth, by changing one at a time (docs/results/ablations.md).

recipe.yaml  the whole recipe for photos of 32x32
variants     what is changed
run          trains and measures each, in as many processes as wanted, or goes on
report       the table
"""
