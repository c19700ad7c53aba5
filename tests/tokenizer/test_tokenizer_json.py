"""The bytes of tokenizer.json, and what they cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import warnings

import pytest
import transformers

from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.tokenizer.tokenizer_json import merges, tokenizer_json
from tests.witness.vocabularies import CONTROL, add_piece, model_bytes, parsed, write_model

TRANSFORMERS_4 = transformers.__version__.startswith("4.")


def test_the_frame_of_tokenizer_json_is_the_measured_one(model_of):
    raw = bytes(tokenizer_json(model_of("plain")))
    content = json.loads(raw)
    model = content.pop("model")
    assert list(model.pop("vocab").items())[:4] == [
        ("<unk>", 0),
        ("<s>", 1),
        ("</s>", 2),
        ("<0x00>", 3),
    ]
    assert model.pop("merges")
    assert model == {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bos_a, bos_b = ({"SpecialToken": {"id": "<s>", "type_id": n}} for n in (0, 1))
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    frame = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **flags, "special": True}
            for number, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos_a, a],
            "pair": [bos_a, a, bos_b, b],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    assert content == frame
    assert list(content) == list(frame)
    assert "▁def".encode() in raw
    assert '"prepend": "▁"'.encode() in raw
    assert raw.startswith(b'{\n  "version": "1.0",\n  "truncation": null,\n')
    assert raw.endswith(b'"\n    ]\n  }\n}')


def test_user_defined_pieces_are_looked_for_but_stay_in_decoded_text(tmp_path):
    model = parsed(model_bytes("plain"))
    add_piece(model, "[TOOL]", 0.0, 4)
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    last = json.loads(bytes(tokenizer_json(read)))["added_tokens"][-1]
    assert (last["content"], last["id"], last["special"]) == ("[TOOL]", 910, False)


def test_special_pieces_are_found_wherever_they_stand(tmp_path):
    """Their numbers differ between models; here <s> and </s> have changed places."""
    model = parsed(model_bytes("infilling"))
    model.pieces[1].piece, model.pieces[2].piece = "</s>", "<s>"
    model.pieces[917].piece, model.pieces[918].piece = "▁<SUF>", "▁<PRE>"
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    content = json.loads(bytes(tokenizer_json(read)))
    assert (read.bos_id, read.eos_id) == (2, 1)
    assert content["post_processor"]["special_tokens"]["<s>"]["ids"] == [2]
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    assert (ids["<s>"], ids["▁<PRE>"], ids["▁<SUF>"]) == (2, 918, 917)


def test_merges_of_a_hand_made_vocabulary(tmp_path):
    """Score first, then the longer left half, then the longer right one; and both are pieces."""
    model = parsed(model_bytes("plain"))
    del model.pieces[259:]
    for text, score in (
        ("a", -1),
        ("b", -2),
        ("ab", -9),
        ("aab", -3),
        ("aa", -9),
        ("zz", -4),
        ("az", -5),
    ):
        add_piece(model, text, score)
    for text in ("bb", "bbb", "bbbb"):
        add_piece(model, text, -20)
    add_piece(model, "ba", 0.0, CONTROL)
    add_piece(model, "a b", -1)
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    assert list(merges(read)) == [
        ("aa", "b"), ("a", "ab"), ("a", "b"), ("a", "a"),
        ("bbb", "b"), ("bb", "bb"), ("bb", "b"), ("b", "bbb"), ("b", "bb"), ("b", "b"),
    ]  # fmt: skip
    content = tokenizer_json(read)
    assert content.n_bytes == len(bytes(content))  # known before a merge is written


def test_a_vocabulary_of_single_characters_has_no_merges(tmp_path):
    model = parsed(model_bytes("plain"))
    del model.pieces[259:]
    add_piece(model, "a", -1)
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    assert bytes(tokenizer_json(read)).endswith(b'      "a": 259\n    },\n    "merges": []\n  }\n}')


def with_merges_as_strings(text: str) -> str:
    """Rewrite transformers' pairs, `[\\n"a",\\n"b"\\n]`, as strings `"a b"`, and nothing else."""
    return re.sub(
        r'\[\n {8}"((?:[^"\\]|\\.)*)",\n {8}"((?:[^"\\]|\\.)*)"\n {6}\]', r'"\1 \2"', text
    )


@pytest.mark.skipif(
    not TRANSFORMERS_4, reason="transformers 5 no longer converts a tokenizer.model rightly"
)
@pytest.mark.parametrize("name", ["plain", "infilling", "stories", "mistral", "mistral_infilling"])
def test_tokenizer_json_is_byte_for_byte_what_transformers_4_writes(name, model_of, tmp_path):
    write_model(tmp_path, model_bytes(name))
    kind = "CodeLlamaTokenizerFast" if "infilling" in name else "LlamaTokenizerFast"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        oracle = getattr(transformers, kind).from_pretrained(tmp_path, legacy=True)
    written = tmp_path / "oracle.json"
    oracle.backend_tokenizer.save(str(written))
    expected = with_merges_as_strings(written.read_text(encoding="utf-8"))
    assert expected != written.read_text(encoding="utf-8")
    assert bytes(tokenizer_json(model_of(name))) == expected.encode()


MEASURE = """
import resource, sys
from pathlib import Path
from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.tokenizer.hf_files import tokenizer_files
model = read_sentencepiece_model(Path(sys.argv[1]))
files = tokenizer_files(model, flavor="chat")
n_bytes = sum(map(len, files["tokenizer.json"].chunks()))
assert n_bytes == files["tokenizer.json"].n_bytes
heavy = {"numpy", "torch", "sentencepiece", "tokenizers", "transformers"} & set(sys.modules)
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(model.n_pieces, n_bytes, int(peak[0]) // 1024, sorted(heavy))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_tokenizer_costs_little_memory_and_no_library(tmp_path):
    """32,016 pieces: measured 27 MB, of which 12 are Python's own; the promise is 40."""
    path = write_model(tmp_path, model_bytes("mistral_infilling"))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    n_pieces, size, peak, heavy = result.stdout.split(maxsplit=3)
    assert (n_pieces, heavy.strip()) == ("32016", "[]")
    assert int(size) > 1_600_000
    assert int(peak) < 40


def test_a_large_tokenizer_is_built_in_a_second_of_processor_time(model_of):
    model = model_of("mistral_infilling")
    start = time.process_time()
    bytes(tokenizer_json(model))
    assert time.process_time() - start < 1.0
