"""From what is asked to what will be done, before the first output byte.

In: a folder and `Options`. Out: a `Job`: every file, every tensor's place in it, every tile, the
memory and the disk that it takes. No weights are read, and nothing is written.
"""
