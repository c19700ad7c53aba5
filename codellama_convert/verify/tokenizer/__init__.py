"""The proof of a tokenizer: whatever in its files changes an id, a text or a prompt.

In: an output folder, and the source's tokenizer.model. Out: what differs.
"""
