"""Disks that are too small, read-only or not ours: refused before the first byte of weights."""
