"""Running a job: tiles go from the ranks through a cast or a reordering into the staged files.

In: a `Job` and an output folder. Out: a published model and a `ConversionReport`.
"""
