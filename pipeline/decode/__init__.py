"""A sample -> clips, or a reject with its reason.

sample           images and videos alike
guarded          in a process that may die
pieces           a long video among the samples, cut
filters          the user's filter
originals        rows back to the clips that they were made from
"""
