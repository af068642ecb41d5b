"""Proof that a dataset is whole.

dataset          every part, the manifest, and the source
part             one part: its rows against its footer
count            what the dataset has of each source file, against an independent count
"""
