"""The fields of a SentencePiece model are read as sentencepiece reads them, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.formats.sentencepiece_message import PieceType
from tests.refusals import refusal, refused
from tests.witness.vocabularies import (
    add_piece,
    model_bytes,
    parsed,
    write_model,
)


def test_a_setting_of_another_wire_type_is_refused(tmp_path):
    """sentencepiece takes it for an unknown field and the default holds; here it was believed."""
    model = parsed(model_bytes("plain"))
    trainer, normalizer = b"\x18\x02\x98\x02\x01", b"\x20\x00"
    model.ClearField("trainer_spec")
    model.ClearField("normalizer_spec")

    def build(trainer: bytes, normalizer: bytes) -> bytes:
        return model.SerializeToString() + b"".join(
            bytes([tag, len(part)]) + part for tag, part in ((0x12, trainer), (0x1A, normalizer))
        )

    good = build(trainer, normalizer)
    assert read_sentencepiece_model(write_model(tmp_path, good)).n_pieces == 910
    exact = sentencepiece.SentencePieceProcessor(model_proto=good)
    as_bytes = build(trainer, b"\x22\x00")  # remove_extra_whitespaces, on by default
    other = sentencepiece.SentencePieceProcessor(model_proto=as_bytes)
    assert other.encode("a  b") != exact.encode("a  b")
    for raw, number in (
        (as_bytes, 4),
        (build(b"\x18\x02\x9a\x02\x01x", normalizer), 35),
        (build(b"\x1a\x01\x02\x98\x02\x01", normalizer), 3),
        (build(trainer + b"\xe8\x02\x01", normalizer), 45),
    ):
        assert f"setting {number} of wire type" in refusal(write_model(tmp_path, raw))


def test_self_test_data_is_passed_over(tmp_path):
    """Field 4 of a model: samples that the trainer may add; they change no id."""
    raw = model_bytes("plain") + b"\x22\x04\x0a\x02\x0a\x00"
    assert read_sentencepiece_model(write_model(tmp_path, raw)).n_pieces == 910


def test_a_field_that_sentencepiece_would_skip_is_refused(tmp_path):
    """One flipped bit can turn a piece into an unknown field; skipped, all later ids would shift."""
    raw = bytearray(model_bytes("plain"))
    second = raw.index(b"\n", 2 + raw[1])
    raw[second] ^= 0x40
    shifted = sentencepiece.SentencePieceProcessor(model_proto=bytes(raw))
    assert shifted.get_piece_size() == 909
    assert "unknown field 9" in refusal(write_model(tmp_path, bytes(raw)))


@pytest.mark.parametrize(
    "spelled",
    [
        b"\x0a\x03new\x15\x00\x00\x80\xc1\x18\x04",  # as sentencepiece does
        b"\x18\x04\x15\x00\x00\x80\xc1\x0a\x03new",
        b"\x0a\x83\x00new\x15\x00\x00\x80\xc1\x18\x04",
        b"\x0a\x03new\x15\x00\x00\x80\xc1\x18\x84\x00",
        b"\x0a\x03old\x15\x00\x00\x80\xc1\x18\x04\x0a\x03new",  # the last one counts
    ],
)
def test_a_piece_may_be_spelled_in_any_way(tmp_path, spelled) -> None:
    """Protocol buffers leave the order of fields to the writer, and the length of numbers."""
    plain = b"\x0a\x0c\x0a\x05later\x15\x00\x00\x84\xc1"
    raw = model_bytes("plain") + b"\x0a" + bytes([len(spelled)]) + spelled + plain
    assert sentencepiece.SentencePieceProcessor(model_proto=raw).id_to_piece(910) == "new"
    model = read_sentencepiece_model(write_model(tmp_path, raw))
    assert model.pieces[910] == ("new", -16.0, PieceType.USER_DEFINED)
    assert model.pieces[911] == ("later", -16.5, PieceType.NORMAL)
    assert model.n_pieces == 912


def test_pieces_that_are_not_utf_8_are_refused(tmp_path):
    raw = model_bytes("plain").replace(b"<0x41>", b"<0x\xff1>")
    assert "is not UTF-8" in refusal(write_model(tmp_path, raw))


@pytest.mark.parametrize(
    ("extra", "facts"),
    [
        (b"\x12\x02\x18\x02", "field 2 occurs twice"),
        (b"\x0a\x7f", "runs 127 bytes past the end"),
        (b"\x0a", "does not end"),
        (b"\x0a" + b"\xff" * 11, "does not end"),
        (b"\x0a" + b"\x80" * 10 + b"\x01", "does not end"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (b"\x0d\x00\x00\x00\x00", "unknown field 1"),
        (b"\x0a\x02\x18\x09", "unknown field 3 or type 9"),
        (b"\x0a\x00" * 262_144, "more than 262144 pieces"),
    ],
)
def test_damage_after_a_whole_model_is_refused(extra, facts, tmp_path):
    assert facts in refusal(write_model(tmp_path, model_bytes("plain") + extra))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.integers(min_value=0), bit=st.integers(0, 7), also=st.binary(max_size=4))
def test_damage_is_an_error_or_a_model_but_never_a_crash(where, bit, also, tmp_path):
    raw = bytearray(model_bytes("plain"))
    where %= len(raw)
    raw[where] ^= 1 << bit
    raw[where + 1 : where + 1 + len(also)] = also
    path = write_model(tmp_path, bytes(raw))
    try:
        model = read_sentencepiece_model(path)
    except TokenizerError as error:
        assert error.path == path  # noqa: PT017 - both outcomes are right
    else:
        assert model.raw == bytes(raw)
        assert model.n_pieces == len(parsed(bytes(raw)).pieces)


@pytest.mark.parametrize(
    ("n_more", "fits"), [(0, True), (1, False)], ids=["at the limit", "one more"]
)
def test_all_pieces_have_so_many_characters_at_most(tmp_path: Path, n_more, *, fits: bool) -> None:
    """Every cut of every piece is looked at: that is what bounds the time."""
    model = parsed(model_bytes("plain"))
    start = sum(len(piece.piece) for piece in model.pieces)
    whole, rest = divmod((1 << 22) + n_more - start, 256)
    texts = [f"{number:0256d}" for number in range(whole)] + ["x" * rest]
    for text in texts:
        add_piece(model, text, -1000.0)
    path = write_model(tmp_path, model.SerializeToString())
    if fits:
        assert read_sentencepiece_model(path).n_pieces == 910 + len(texts)
    else:
        with refused(TokenizerError, str(path), "4194305 characters"):
            read_sentencepiece_model(path)
