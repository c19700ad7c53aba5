"""Reading Llama 3's tokenizer.model: whole files are read as they are, all others are refused."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.tiktoken import TiktokenModel, read_tiktoken_model
from codellama_convert.formats.tokenizer_model import read_tokenizer_model
from tests.refusals import refused
from tests.witness.llama3 import N_TOKENS, SHA256, TINY, meta_path, meta_tokenizer, spelled
from tests.witness.vocabularies import model_bytes, write_model

BYTES = [bytes([n]) for n in range(256)]
LINES = spelled(BYTES)
FIRST, SECOND = b"AA== 0\n", b"AQ== 1\n"


def test_metas_file_is_read_as_meta_reads_it() -> None:
    model = read_tiktoken_model(meta_path())
    assert hashlib.sha256(model.raw).hexdigest() == SHA256
    assert len(model.tokens) == N_TOKENS
    ranks = meta_tokenizer().model._mergeable_ranks
    assert [ranks[token] for token in model.tokens] == list(range(N_TOKENS))
    assert (model.n_pieces, model.bos_id, model.eos_id) == (128256, 128000, 128001)


def test_a_small_vocabulary_is_read(tmp_path: Path) -> None:
    path = write_model(tmp_path, spelled(TINY))
    model = read_tokenizer_model(path)
    assert isinstance(model, TiktokenModel)
    assert tuple(model.tokens) == TINY
    assert model.raw == path.read_bytes()
    assert (model.n_pieces, model.bos_id, model.eos_id) == (528, 272, 273)


def test_two_readings_of_one_file_are_equal(tmp_path: Path) -> None:
    """They never were: what was counted for a vocabulary was counted again for the same one."""
    path = write_model(tmp_path, spelled(TINY))
    first, second = read_tiktoken_model(path), read_tiktoken_model(path)
    assert first == second
    assert hash(first) == hash(second)
    write_model(tmp_path, spelled(TINY[:-1]))
    assert read_tiktoken_model(path) != first


def test_the_content_tells_the_kind_and_not_the_name(tmp_path: Path) -> None:
    older = write_model(tmp_path / "Llama3.1-8B", model_bytes("plain"))
    assert isinstance(read_tokenizer_model(older), SentencePieceModel)
    newer = write_model(tmp_path / "CodeLlama-7b", LINES)
    assert isinstance(read_tokenizer_model(newer), TiktokenModel)


@pytest.mark.parametrize("content", [b"hello\n", b"\0" * 1000, b"AA==\n", b" 0\n", b"AA== 0"])
def test_a_file_of_neither_kind_is_refused_as_such(tmp_path: Path, content: bytes) -> None:
    path = write_model(tmp_path, content)
    with refused(TokenizerError, str(path), "SentencePiece", "nor a tiktoken vocabulary"):
        read_tokenizer_model(path)


def test_other_kinds_are_named(tmp_path: Path) -> None:
    with refused(TokenizerError, "an HTML page", "try it again"):
        read_tokenizer_model(write_model(tmp_path, b"<html>403 Forbidden</html>"))
    with refused(TokenizerError, "the file is empty"):
        read_tokenizer_model(write_model(tmp_path, b""))
    with refused(TokenizerError, "No such file", "downloaded with the weights"):
        read_tokenizer_model(tmp_path / "nothing")


def test_code_llamas_class_names_the_one_that_loads_it(tmp_path: Path) -> None:
    write_model(tmp_path, LINES)
    with refused(TokenizerError, "a tiktoken (Llama 3) vocabulary", "AutoTokenizer"):
        CodeLlamaTokenizer.from_pretrained(tmp_path)


def with_token(token: bytes) -> bytes:
    return LINES + base64.b64encode(token) + b" 256\n"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (LINES.replace(SECOND, b"AQ== 2\n"), "line 2 has rank 2, expected 1"),
        (LINES.replace(SECOND, b""), "line 2 has rank 2, expected 1"),
        (LINES.replace(SECOND, SECOND * 2), "line 3 has rank 1, expected 2"),
        (LINES.replace(SECOND, b"AA== 1\n"), "line 2: the token b'\\x00' occurs a second time"),
        (LINES.replace(SECOND, b"\n"), "line 2 is b'\\n'"),
        (LINES.replace(SECOND, b"AQ==  1\n"), "line 2 is b'AQ==  1\\n'"),
        (LINES.replace(SECOND, b"AQ==\t1\n"), "line 2 is"),
        (LINES.replace(SECOND, b" 1\n"), "line 2 is"),
        (LINES.replace(SECOND, b"AQ== 01\n"), "line 2 is"),
        (LINES.replace(SECOND, b"AQ== +1\n"), "line 2 is"),
        (LINES.replace(SECOND, b"AQ== \xd9\xa1\n"), "line 2 is"),
        (LINES.replace(SECOND, b"AQ== 1 \n"), "line 2 is"),
        (LINES.replace(SECOND, b"AQ== " + b"9" * 5000 + b"\n"), "line 2 is"),
        (LINES.replace(b"\n", b"\r\n"), "line 1 is b'AA== 0\\r\\n'"),
        (
            LINES.replace(SECOND, b"AR== 1\n"),
            "b'AR==' is not canonical base64",
        ),  # bits that no encoder sets
        (LINES.replace(SECOND, b"AQ= 1\n"), "b'AQ=' is not canonical base64"),
        (LINES.replace(SECOND, b"AQ 1\n"), "b'AQ' is not canonical base64"),
        (LINES.replace(SECOND, b"A 1\n"), "b'A' is not canonical base64"),
        (LINES.replace(SECOND, b"_-== 1\n"), "line 2 is"),
        (LINES[:-1], "does not end in a newline: the file is truncated"),
        (LINES[:-3], "does not end in a newline: the file is truncated"),
        (spelled(BYTES[:-1]), "the byte 0xff is not a token (of 256 bytes, 1 are not)"),
        (FIRST, "the byte 0x01 is not a token (of 256 bytes, 255 are not)"),
        (with_token(b"x" * 257), "line 257: the token has 257 bytes"),
        (with_token(b"<|eot_id|>"), "line 257: the token b'<|eot_id|>' is spelled as a special"),
    ],
)
def test_a_damaged_file_is_refused_with_the_line(tmp_path: Path, content: bytes, fact: str) -> None:
    """Meta's reader passes over such lines with a warning, and other ids come out."""
    path = write_model(tmp_path, content)
    with refused(TokenizerError, str(path), fact, "download"):
        read_tokenizer_model(path)


@pytest.mark.parametrize("token", [b"x" * 256, b"<|eot_id|", b"|>", b"\xff\xfe", b"AA== 0\n"])
def test_what_lies_just_inside_the_bounds_is_read(tmp_path: Path, token: bytes) -> None:
    model = read_tiktoken_model(write_model(tmp_path, with_token(token)))
    assert [*model.tokens] == [*BYTES, token]


def test_a_file_is_refused_wherever_it_is_cut_but_behind_a_later_token(tmp_path: Path) -> None:
    """Only the size of the embedding says that whole lines are missing."""
    whole, path, read = spelled(TINY), tmp_path / "tokenizer.model", []
    for n_bytes in range(len(whole) + 1):
        path.write_bytes(whole[:n_bytes])
        try:
            read.append(read_tokenizer_model(path).n_pieces)
        except TokenizerError:
            continue
    assert read == list(range(256 + 256, 256 + len(TINY) + 1))


def test_what_no_vocabulary_has_is_refused_before_it_costs_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    many = [n.to_bytes(3, "big") for n in range(1 << 17)]
    path.write_bytes(spelled([*BYTES, *many[: (1 << 17) - 256]]))
    assert len(read_tiktoken_model(path).tokens) == 1 << 17
    path.write_bytes(spelled([*BYTES, *many[: (1 << 17) - 255]]))
    with refused(TokenizerError, "more than 131072 tokens", "128000"):
        read_tiktoken_model(path)
    path.write_bytes(FIRST + b"\n" * (4 << 20))
    with refused(TokenizerError, "not larger than 4194304 bytes"):
        read_tokenizer_model(path)
