"""The output folder: nothing half-done is ever taken for a model.

In: whole files, one after another. Out: all of them in place at once, what loaders begin with last;
or, after a crash, what the same command needs to resume.
"""
