"""Tokenizers of converted folders."""

from __future__ import annotations

import warnings
from functools import cache

import pytest

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.tokenizer.hf_files import DEFAULT_TOKENIZER_CLASS


@pytest.fixture(scope="module")
def tokenizer(folder_of):
    return CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))


@pytest.fixture(scope="session")
def load(folder_of):
    """Load a converted folder with a class of transformers, once a session."""
    import transformers

    @cache
    def loaded(kind, name, flavor=None, tokenizer_class=DEFAULT_TOKENIZER_CLASS):
        folder = folder_of(name, flavor, tokenizer_class)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return getattr(transformers, kind).from_pretrained(folder)

    return loaded
