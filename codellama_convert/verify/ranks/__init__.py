"""Own the proof of a folder of ranks: its weights, every other byte, its small files, its record.

In: a folder of ranks, and its source where there is one. Out: what differs.
"""
