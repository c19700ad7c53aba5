"""Meta's folder: its files are found, checked against each other, and their rows read.

In: a folder. Out: a `Checkpoint` in which everything that can be refused has been refused, and a
`RankReader` that reads rows and takes their CRC-32 on the way.
"""
