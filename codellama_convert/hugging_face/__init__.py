"""Hugging Face's folder: the files beside the weights.

In: a configuration. Out: the bytes of config.json, generation_config.json and the model card.
"""
