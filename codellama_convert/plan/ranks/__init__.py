"""Own the plan of the way back: into how many ranks, with which bytes, restored or new.

In: a Hugging Face folder or Meta's ranks, and options. Out: a job that `convert` writes.
"""
