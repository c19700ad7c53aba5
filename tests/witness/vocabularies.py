"""Make tokenizer.model files to test with: trained here, or published under a free licence.

No vocabulary of Meta's is used or rebuilt. What is Meta's in them are facts: which pieces infilling
needs, that runs of spaces share one score, and the trainer settings.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import SupportsBytes

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

DATA = Path(__file__).parents[1] / "data"
NORMAL, CONTROL = 1, 3

# FACTS.md 5.2: text and score of the pieces that Meta appended for infilling, in id order.
INFILLING = (
    *((f"▁<{part}", -1e9) for part in ("SU", "SUF", "PRE", "M", "MID", "E", "EOT")),
    *((f"▁<{part}>", -1e18) for part in ("PRE", "SUF", "MID", "EOT")),
    *(("▁" + "<EOT>" * count, -1e18) for count in (2, 3, 4, 5, 6)),
)

WORDS = [
    "def",
    "return",
    "self",
    "import",
    "class",
    "while",
    "for",
    "range",
    "print",
    "value",
    "index",
    "name",
    "list",
    "dict",
    "string",
    "number",
    "count",
    "total",
    "result",
    "config",
    "tensor",
    "shape",
    "dtype",
    "layer",
    "model",
    "token",
    "piece",
    "merge",
    "score",
    "state",
    "first",
    "second",
    "third",
    "left",
    "right",
    "before",
    "after",
    "begin",
    "middle",
    "end",
    "open",
    "close",
    "read",
    "write",
    "user",
    "system",
    "assistant",
    "source",
    "destination",
    "answer",
    "question",
    "please",
    "write",
    "function",
    "that",
    "adds",
    "two",
    "numbers",
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "and",
    "then",
    "some",
    "other",
    "words",
    "follow",
    "here",
    "in",
    "plain",
    "order",
]
SIGNS = "+-*/%=<>!&|^~()[]{}:;,.'\"#@$?\\_`"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
RARE = "éüñßλπДж中文字日本語한글→∞"


def _sentences() -> list[str]:
    """Write text with enough variety for some hundred merges."""
    pairs = itertools.product(WORDS, WORDS[::7])
    lines = [
        f"{'    ' * (n % 4)}{first}_{second} = {second}({first}, {n}) {SIGNS[n % len(SIGNS)]} {first}"
        for n, (first, second) in enumerate(pairs)
    ]
    alphabet = [f"{c} {c}{c}" for c in LETTERS + SIGNS + RARE]
    # Meta's vocabulary can build "▁<PRE>" from "▁<", "PRE" and ">"; so shall this one.
    names = [f"{c}{name}{c} < {c}<{c}" for c in LETTERS for name in ("PRE", "SUF", "MID", "EOT")]
    return [*lines, *alphabet, *names, " ".join(WORDS), "Source: user", "Destination: assistant"]


@cache
def trained(vocab_size: int = 900, **options: object) -> bytes:
    """Train a model with Meta's settings; `options` change them."""
    buffer = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
        "required_chars": "☺",  # what infilling puts before a suffix; never joined with text
        "num_threads": 1,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()), model_writer=buffer, vocab_size=vocab_size, **settings
    )
    return buffer.getvalue()


def parsed(raw: bytes) -> pb.ModelProto:
    model = pb.ModelProto()
    model.ParseFromString(raw)
    return model


def add_piece(model: pb.ModelProto, text: str, score: float, kind: int | None = None) -> None:
    # Meta's appended pieces leave the type out: it is NORMAL by default.
    model.pieces.add(piece=text, score=score, **({} if kind is None else {"type": kind}))


@cache
def plain() -> bytes:
    """Like Llama 2: runs of 1 to 16 spaces are pieces, all of one score."""
    model = parsed(trained())
    for piece in model.pieces:
        if not piece.piece.strip("▁"):
            piece.score = -1e9
    present = {piece.piece for piece in model.pieces}
    for length in range(2, 17):
        if "▁" * length not in present:
            add_piece(model, "▁" * length, -1e9)
    return model.SerializeToString()


def with_infilling(raw: bytes) -> bytes:
    """Append infilling pieces as Meta did; `trainer_spec.vocab_size` stays behind as it did there."""
    model = parsed(raw)
    for text, score in INFILLING:
        add_piece(model, text, score)
    return model.SerializeToString()


def with_step(raw: bytes, kind: int | None = None) -> bytes:
    """Append the `<step>` of 70B Instruct, in the place of the last spare piece."""
    model = parsed(with_infilling(raw))
    del model.pieces[-1]
    add_piece(model, "<step>", -1e18, kind)
    return model.SerializeToString()


# Ids and names that sentencepiece's trainer can be asked for, and that are not Meta's 0, 1 and 2.
ENDS_FIRST = {"bos_id": 0, "eos_id": 1, "unk_id": 2}
ENDS_LATER = {"unk_id": 0, "bos_id": 2, "eos_id": 3}
ENDS_NAMED = {
    "unk_id": 5, "bos_id": 3, "eos_id": 899,
    "unk_piece": "<what>", "bos_piece": "<go>", "eos_piece": "<halt>",
}  # fmt: skip


@cache
def stories() -> bytes:
    """Rebuild the 512 pieces of stories260K (MIT licence) from llama2.c's format."""
    raw = (DATA / "stories260K" / "tok512.bin").read_bytes()
    model = parsed(trained())
    del model.pieces[:]
    offset = 4
    for number in range(512):
        score, length = struct.unpack_from("<fi", raw, offset)
        text = raw[offset + 8 : offset + 8 + length].decode()
        offset += 8 + length
        if number < 3:
            text, kind = (("<unk>", 2), ("<s>", CONTROL), ("</s>", CONTROL))[number]
            add_piece(model, text, 0.0, kind)
        elif number < 259:
            add_piece(model, f"<0x{number - 3:02X}>", 0.0, 6)
        else:
            # llama2.c's export writes the space itself.
            add_piece(model, text.replace(" ", "▁"), score, NORMAL)
    return model.SerializeToString()


@cache
def mistral() -> bytes:
    """Mistral's first vocabulary: 32,000 pieces, Apache 2.0, shipped in mistral-common."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        pytest.skip("mistral-common is not installed")
    path = Path(spec.origin).parent / "data" / "tokenizer.model.v1"
    if not path.is_file():
        pytest.skip("this release of mistral-common ships no tokenizer.model.v1")
    return path.read_bytes()


@cache
def model_bytes(name: str) -> bytes:
    """Make the model of that name; sentencepiece must accept it too."""
    return {
        "plain": plain,
        "infilling": lambda: with_infilling(plain()),
        "step": lambda: with_step(plain()),
        "step_control": lambda: with_step(plain(), CONTROL),
        "stories": stories,
        "ends_first": lambda: with_step(trained(**ENDS_FIRST)),
        "ends_later": lambda: with_infilling(trained(**ENDS_LATER)),
        "ends_named": lambda: trained(**ENDS_NAMED),
        "mistral": mistral,
        "mistral_infilling": lambda: with_infilling(mistral()),
        "mistral_step": lambda: with_step(mistral()),
    }[name]()


@cache
def processor(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model_bytes(name))


def write_model(folder: Path, raw: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    path.write_bytes(raw)
    return path


def write_folder(folder: Path, files: Mapping[str, SupportsBytes], *, config: bool = True) -> Path:
    """Write tokenizer files, and the config.json by which transformers knows a Llama."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(bytes(content))
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder
