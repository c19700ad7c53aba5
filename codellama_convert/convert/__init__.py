"""Running a job: tiles go from the source through a cast or a reordering into the staged files.

In: a `Job`, an output folder, and an executor whose workers write the files, or threads of this
process. Out: a published model and a `ConversionReport`.
"""
