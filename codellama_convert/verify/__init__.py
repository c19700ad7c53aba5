"""The proof: every byte of an output is compared with its source, or with its own record.

In: an output folder and, where there is one, the `Job` of its source. Out: a `VerifyReport`. It
spells what it expects itself, and shares with the conversion only readers, table and placement.
"""
