"""What one sees of a training while it runs, and afterwards in its folder.

terminal         lines, and bars where there is a terminal
records          figures of the steps so far: how many, the best
pace             how long it still takes
heldout          held-out photos under the averaged weights: figures, and pictures in rows
sheets           those rows as one picture, labelled
curves           figures over steps, as SVG
event_files      the same for TensorBoard
log              all of these, as a run asks for them
"""
