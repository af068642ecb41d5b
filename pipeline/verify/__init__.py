"""Proof that a dataset is whole.

dataset          every part, the manifest, and the source
part             one part: its rows against its footer
"""
