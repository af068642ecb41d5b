"""What Python has of the commands, under the names of `import tatok`: functions, and results that a notebook shows.

tokenizing       `tatok.tokenize` and `tatok.plan`
opened           `tatok.open`: one face of a dataset
shown            pictures of rows that draw themselves
progress         a run's progress on a terminal or in a notebook
"""
