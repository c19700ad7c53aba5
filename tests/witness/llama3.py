"""Vocabularies of Llama 3's kind: Meta's own, out of the package llama-models, and tiny ones.

Meta's file is not in this repository: its licence is not this project's.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.witness.texts import varied_texts

SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
N_TOKENS = 128_000
# A class of its own: these strings are what Hugging Face takes for special tokens.
SPECIAL_LITERALS = (
    "<|begin_of_text|>", "a<|eot_id|>b", "<|end_of_text|> ", "<|reserved_special_token_0|>",
    "say <|start_header_id|>system<|end_header_id|>",
)  # fmt: skip


def meta_path() -> Path:
    """Find Meta's tokenizer.model, or skip the test."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or spec.origin is None:
        pytest.skip("llama-models is not installed")
    return Path(spec.origin).parent / "llama3" / "tokenizer.model"


@cache
def meta_tokenizer() -> Any:
    """Load Meta's Tokenizer with Meta's vocabulary."""
    path = meta_path()
    from llama_models.llama3.tokenizer import Tokenizer

    return Tokenizer(path)


def meta_ids(texts: Iterable[str]) -> list[list[int]]:
    """Encode as Meta's code does a prompt: the id that begins a text, and the text as text."""
    encode = meta_tokenizer().encode
    return [encode(text, bos=True, eos=False) for text in texts]


@cache
def many_texts() -> tuple[str, ...]:
    """Make more than 10,000 texts: the varied ones, and tokens of the vocabulary side by side."""
    chance = random.Random(3)
    tokens = [base64.b64decode(line.split()[0]) for line in meta_path().read_bytes().splitlines()]
    texts = list(varied_texts())
    texts += [token.decode(errors="replace") for token in chance.sample(tokens, 2000)]
    for n_tokens in (2, 3, 6):
        for _ in range(2000):
            joined = b"".join(chance.choices(tokens, k=n_tokens))
            texts.append(joined.decode(errors="replace"))
    texts += [
        pair * n for pair in (".:", "ab", "--", "=-", "\n ", "'s", "\u017f") for n in range(1, 60)
    ]
    texts += [
        f"{word}'{end}" for word in ("I", "\u017f", "\u212a") for end in ("S", "LL", "rE", "\u017f")
    ]
    return tuple(dict.fromkeys(texts))


def spelled(tokens: Iterable[bytes]) -> bytes:
    """Write a vocabulary as tiktoken does."""
    return b"".join(
        base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens)
    )


# Every way of cutting "aaaa" and "abab" is there, and a token that no two others make.
TINY = (
    *(bytes([n]) for n in (*range(255, -1, -1),)),
    b"aa", b"ab", b" a", b"aaa", b"aaaa", b"abab", b"ba", b"bab", b"\xff\xfe", b'"\\', b"xyz",
    "é".encode(), "中".encode(), b"\n\n", b"\xad\xa0", b"'s",
)  # fmt: skip


def write_folder(folder: Path, files: dict[str, Any]) -> Path:
    """Write tokenizer files and the config.json beside them, as a conversion does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(bytes(content))
    config = {"model_type": "llama", "transformers_version": "4.43.0"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
