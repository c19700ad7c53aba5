"""Reading tokenizer.model: whole and fitting files are read as they are, all others are refused."""

from __future__ import annotations

import base64
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece

from codellama_convert import CodeLlamaTokenizer, Options, plan_conversion
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.formats.sentencepiece_message import PieceType
from codellama_convert.tokenizer.codec import MetaCodec
from tests.refusals import refusal, refused
from tests.witness.vocabularies import (
    ENDS_FIRST,
    add_piece,
    model_bytes,
    parsed,
    trained,
    write_model,
)


@pytest.mark.parametrize(
    "name", ["plain", "infilling", "step", "step_control", "stories", "mistral"]
)
def test_reads_what_sentencepiece_reads(name, tmp_path):
    raw = model_bytes(name)
    model = read_sentencepiece_model(write_model(tmp_path, raw))
    oracle = parsed(raw)
    assert model.raw == raw
    assert [(p.text, p.score, int(p.type)) for p in model.pieces] == [
        (p.piece, p.score, p.type) for p in oracle.pieces
    ]
    assert (model.unk_id, model.bos_id, model.eos_id) == (0, 1, 2)
    assert model.n_pieces == len(oracle.pieces)


def test_counts_the_pieces_and_not_the_stale_number_in_the_settings(model_of):
    assert parsed(model_bytes("infilling")).trainer_spec.vocab_size == 900
    assert model_of("infilling").n_pieces == 926


def test_finds_pieces_by_name(model_of):
    assert model_of("infilling").id_of("▁<PRE>") == 917
    assert model_of("plain").id_of("▁<PRE>") is None
    assert model_of("step").id_of("<step>") == 925
    assert model_of("plain").pieces[3] == ("<0x00>", 0.0, PieceType.BYTE)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file or directory" in refusal(tmp_path / "tokenizer.model")
    assert "is a folder, not a file" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused_at_once(tmp_path):
    path = tmp_path / "tokenizer.model"
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


def test_a_symbolic_link_to_a_file_is_read(tmp_path):
    """The caches of download tools consist of links."""
    link = tmp_path / "link.model"
    link.symlink_to(write_model(tmp_path, model_bytes("plain")))
    assert read_sentencepiece_model(link).n_pieces == 910


def zip_bytes(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return (folder / "x.zip").read_bytes()


TIKTOKEN = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 499723\n"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", "the file is empty"),
        (b"\0" * 1000, "not a SentencePiece model, or a truncated one"),
        (b"hello world, this is text\n", "not a SentencePiece model, or a truncated one"),
        (b"\x9d\x01\xfe" + b"\xff" * 500, "not a SentencePiece model, or a truncated one"),
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "an HTML page"),
        (b"\n<html>\n", "an HTML page"),
        (LFS, r"a Git LFS pointer.*git lfs pull"),
        (json.dumps({"version": "1.0", "model": {}}).encode(), r"JSON \(a tokenizer.json\?\)"),
        (b'\n[\n "a"\n]\n', "JSON"),
        (b"GGUF\x03\0\0\0" + b"\0" * 64, "a GGUF file"),
        (TIKTOKEN, r"a tiktoken \(Llama 3\) vocabulary.*AutoTokenizer"),
        (b"\0" * (8 * 1024 * 1024 + 1), "larger than 8388608 bytes"),
        (b"GGUF" + b"\0" * (8 * 1024 * 1024), "a GGUF file"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_other_kinds_of_files_are_named(content, facts, tmp_path):
    assert re.search(facts, refusal(write_model(tmp_path, content)))


def test_a_zip_file_is_named(tmp_path):
    assert "a zip file (a PyTorch checkpoint?)" in refusal(
        write_model(tmp_path, zip_bytes(tmp_path))
    )


def test_a_file_cut_before_its_normalizer_settings_is_refused(tmp_path):
    """The last bytes of Meta's files; sentencepiece accepts the rest, with defaults that change ids."""
    model = parsed(model_bytes("plain"))
    model.ClearField("denormalizer_spec")
    whole = model.SerializeToString()
    model.ClearField("normalizer_spec")
    cut = model.SerializeToString()
    assert whole.startswith(cut)
    accepting = sentencepiece.SentencePieceProcessor(model_proto=cut)
    exact = sentencepiece.SentencePieceProcessor(model_proto=whole)
    assert accepting.encode("a  b") != exact.encode("a  b")
    line = refusal(write_model(tmp_path, cut))
    assert "truncated SentencePiece model: 910 pieces but no normalizer settings" in line
    assert read_sentencepiece_model(write_model(tmp_path, whole)).n_pieces == 910


def test_every_cut_of_a_file_is_refused(tmp_path):
    raw = model_bytes("plain")
    cuts = [*range(1, 300), *range(300, len(raw), 37), *range(len(raw) - 150, len(raw))]
    for cut in cuts:
        refusal(write_model(tmp_path, raw[:cut]))
    assert read_sentencepiece_model(write_model(tmp_path, raw)).raw == raw


@pytest.mark.parametrize("kind", ["unigram", "word", "char"])
def test_models_of_another_algorithm_are_refused(kind, tmp_path):
    number = {"unigram": 1, "word": 3, "char": 4}[kind]
    model = parsed(model_bytes("plain"))
    model.trainer_spec.model_type = number
    line = refusal(write_model(tmp_path, model.SerializeToString()))
    assert f"a SentencePiece {kind} model; Llama 2 and Code Llama use BPE" in line


def test_a_trained_unigram_model_is_refused(tmp_path):
    raw = trained(vocab_size=500, model_type="unigram")
    assert "a SentencePiece unigram model" in refusal(write_model(tmp_path, raw))


def set_normalizer(**settings):
    return lambda model: [setattr(model.normalizer_spec, *item) for item in settings.items()]


def set_piece(name, value, number=600):
    return lambda model: setattr(model.pieces[number], name, value)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (set_normalizer(add_dummy_prefix=False), "add_dummy_prefix is False; .* True"),
        (set_normalizer(remove_extra_whitespaces=True), "remove_extra_whitespaces is True"),
        (set_normalizer(escape_whitespaces=False), "escape_whitespaces is False"),
        (set_normalizer(precompiled_charsmap=b"\1\2"), "character map"),
        (lambda m: setattr(m.denormalizer_spec, "precompiled_charsmap", b"\1"), "character map"),
        (lambda m: setattr(m.trainer_spec, "byte_fallback", False), "byte fallback is off"),
        (
            lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True),
            "as_suffix is True",
        ),
        (lambda m: setattr(m.trainer_spec, "bos_piece", "<begin>"), "no bos piece.*<begin>"),
        (lambda m: m.ClearField("trainer_spec"), "no trainer settings after them"),
        (lambda m: m.ClearField("pieces"), "the 256 byte pieces <0x00>..<0xFF>, found 0"),
        (set_piece("piece", "▁s"), r"the piece '▁s' occurs twice \(again as id 600\)"),
        (set_piece("piece", ""), r"a piece is empty \(id 600\)"),
        (set_piece("piece", "x" * 257), "the piece with id 600 has 257 characters"),
        (set_piece("score", float("nan")), "has the score nan"),
        (set_piece("score", float("-inf")), "has the score -inf"),
        (set_piece("type", 5), "is marked unused"),
        (set_piece("type", 1, 3), "the 256 byte pieces <0x00>..<0xFF>, found 255"),
        (set_piece("type", 1, 0), "no unk piece"),
        (set_piece("type", 2, 600), "no unk piece: expected '<unk>'"),
        (set_piece("type", 1, 1), "no bos piece: expected '<s>'"),
        (set_piece("type", 1, 2), "no eos piece: expected '</s>'"),
    ],
)
def test_models_with_other_ids_than_metas_are_refused(change, facts, tmp_path):
    model = parsed(model_bytes("plain"))
    assert model.pieces[272].piece == "▁s"
    change(model)
    assert re.search(facts, refusal(write_model(tmp_path, model.SerializeToString())))


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_model_without_an_end_is_refused_and_told_what_is_left(role, tmp_path):
    """Trained with an id of -1: Meta's code would look up row -1 of the embedding, or never stop."""
    raw = trained(**{f"{role}_id": -1})
    library = sentencepiece.SentencePieceProcessor(model_proto=raw)
    assert getattr(library, f"{role}_id")() == -1
    told = refusal(write_model(tmp_path, raw))
    assert f"no {role} piece" in told
    assert "--skip_tokenizer" in told


def test_an_empty_name_is_the_default_one_as_sentencepiece_reads_it(tmp_path):
    model = parsed(trained(**ENDS_FIRST))
    model.trainer_spec.bos_piece = model.trainer_spec.eos_piece = ""
    raw = model.SerializeToString()
    library = sentencepiece.SentencePieceProcessor(model_proto=raw)
    read = read_sentencepiece_model(write_model(tmp_path, raw))
    assert (read.bos_id, read.eos_id) == (library.bos_id(), library.eos_id()) == (0, 1)


def test_settings_at_the_boundary_are_accepted(tmp_path):
    model = parsed(model_bytes("plain"))
    model.pieces[600].piece = "x" * 256
    model.trainer_spec.bos_piece = "<s>"
    model.normalizer_spec.escape_whitespaces = True
    assert read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))


def with_piece(text: str, kind: int) -> bytes:
    model = parsed(model_bytes("plain"))
    add_piece(model, text, -1000.0, kind)
    return model.SerializeToString()


def test_a_piece_with_a_nul_is_refused_at_every_entrance(tmp_path: Path) -> None:
    """sentencepiece 0.2.1 aborts the process on a user-defined one, 0.2.3 raises a RuntimeError."""
    path = write_model(tmp_path, with_piece("a\0b", 4))
    for enter in (
        lambda: read_sentencepiece_model(path),
        lambda: CodeLlamaTokenizer.from_pretrained(tmp_path),
        lambda: plan_conversion(tmp_path, Options(model_size="tokenizer_only")),
    ):
        with refused(TokenizerError, str(path), r"'a\x00b'", "910", "NUL"):
            enter()
    write_model(tmp_path, with_piece("a\x01b", 4))
    assert CodeLlamaTokenizer.from_pretrained(tmp_path).vocab_size == 911


def test_what_sentencepiece_raises_names_the_model(tmp_path: Path) -> None:
    """A release may refuse what this program accepts; it was a bare RuntimeError."""
    path = write_model(tmp_path, model_bytes("plain"))
    read = read_sentencepiece_model(path)
    with pytest.raises(RuntimeError):
        sentencepiece.SentencePieceProcessor(model_proto=b"no model")
    with refused(TokenizerError, str(path), f"sentencepiece {sentencepiece.__version__}"):
        CodeLlamaTokenizer(replace(read, raw=b"no model"))
    codec = MetaCodec(read)
    assert codec.decode(codec.encode("def")) == "def"
    with refused(TokenizerError, str(path), "sentencepiece"):
        codec.decode([10**6])
