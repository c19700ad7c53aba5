"""Own the question that tests ask of a refusal: whether it tells the facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codellama_convert.errors import ConvertError, TokenizerError
from codellama_convert.formats.sentencepiece import read_sentencepiece_model


@contextmanager
def refused(kind: type[ConvertError], *facts: str) -> Iterator[None]:
    """Expect a refusal of a kind that tells these facts, in this order."""
    with pytest.raises(kind) as caught:
        yield
    told = str(caught.value)
    assert re.search(".*".join(map(re.escape, facts)), told), told


def refusal(path: Path) -> str:
    """Read a tokenizer.model that must be refused; return the one line, which names it and a remedy."""
    with pytest.raises(TokenizerError) as caught:
        read_sentencepiece_model(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert caught.value.hint
    return line
