"""Hugging Face's folder: the files beside the weights, and the reading of a whole folder.

In: a configuration. Out: the bytes of config.json, generation_config.json and the model card.
In: a folder, whoever wrote it. Out: a `HuggingFaceCheckpoint` in which everything that can be
refused has been refused; `TensorReader` reads the rows of its files.
"""
