"""From Meta's tokenizer.model to Hugging Face's tokenizer files, and a tokenizer class for infilling.

In: a SentencePiece model that was read and checked. Out: the bytes of tokenizer.json and the files
beside it; and `CodeLlamaTokenizer`, which gives Meta's ids.
"""
