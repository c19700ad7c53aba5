"""Own the files that torch.save writes: what their pickle may say, where their data lies, every byte.

In: a file's zip entries, or what torch.save would be given. Out: tensors by name with their places,
or a layout that is written byte for byte as torch would. Nothing is imported or called.
"""
