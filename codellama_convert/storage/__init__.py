"""Bytes on a disk: files read and written at positions, sums, folders, locks, threads.

In: paths, positions, buffers. Out: bytes, CRC-32 sums, and errors with the system's own words.

"""
