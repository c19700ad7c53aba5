"""One table says what a file is that should have been a rank, params.json or a tokenizer.model."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.formats.file_kinds import Wanted, other_kind, refuse_other_kind

SAFETENSORS = b'\x60\x2c\0\0\0\0\0\0{"__metadata__'
HEADS = [
    (b"<!doctype html>", "HTML"),
    (b"\xef\xbb\xbf\n\t <html lang='en'>", "HTML"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    (b"version https://git-lfs.github.com/spec/v1", "LFS"),
    (bytes(257) + b"ustar\x0000", "tar"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"GGUF\x03\0\0\0", "GGUF"),
    (SAFETENSORS, "safetensors"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "legacy"),
    (b"IQ== 0\nIg== 1\n", "tiktoken"),
]
ZIP, JSON = b"PK\x03\x04", b'{"dim": 4096}'


@pytest.mark.parametrize("wanted", ["zip", "JSON", "SentencePiece"])
@pytest.mark.parametrize(("head", "kind"), HEADS)
def test_other_kinds_of_file_are_named(head: bytes, kind: str, wanted: Wanted) -> None:
    found = other_kind(head, wanted)
    assert found is not None
    assert kind in found.says
    assert found.hint


@pytest.mark.parametrize("wanted", ["zip", "JSON", "SentencePiece"])
@pytest.mark.parametrize(
    "head", [b"", b"<", b"PK", bytes(512), b"\x80\x02}.", b"\n\x0e\n\x05<unk>\x15", b"version 1"]
)
def test_nothing_is_said_of_unknown_kinds(head: bytes, wanted: Wanted) -> None:
    assert other_kind(head, wanted) is None


@pytest.mark.parametrize(
    ("head", "wanted", "kind"),
    [
        (ZIP, "zip", None),
        (ZIP, "JSON", "zip"),
        (ZIP, "SentencePiece", "zip"),
        (JSON, "JSON", None),
        (b"        " + JSON, "JSON", None),  # no safetensors header of 8 spaces
        (JSON, "zip", "JSON"),
        (b"\n [1]", "SentencePiece", "JSON"),
        (SAFETENSORS, "safetensors", None),
        (SAFETENSORS, "zip", "safetensors"),
        (ZIP, "safetensors", "zip"),
        (b"IQ== 0\n", "tiktoken", None),
        (b"IQ== 0\n", "zip", "tiktoken"),
        (JSON, "tiktoken", "JSON"),
    ],
)
def test_what_is_wanted_is_no_other_kind(head: bytes, wanted: Wanted, kind: str | None) -> None:
    found = other_kind(head, wanted)
    assert (found is None) == (kind is None)
    assert found is None or str(kind) in found.says


def test_the_refusal_says_what_and_where_and_what_to_do() -> None:
    path = Path("model/params.json")
    refuse_other_kind(JSON, "JSON", path=path, error=ConfigError)
    with pytest.raises(ConfigError, match=r"model.params\.json: is a GGUF file; use the original"):
        refuse_other_kind(b"GGUF", "JSON", path=path, error=ConfigError)
