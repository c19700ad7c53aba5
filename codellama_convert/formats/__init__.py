"""File formats: zip, pickle, `.pth`, safetensors, SentencePiece, JSON.

In: a file. Out: what it says, checked value by value, or an error that names the file and the cause.
Nothing in a file is executed, and no length is believed before it is bounded. It knows no model.
"""
