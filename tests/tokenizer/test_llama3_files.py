"""The tokenizer files of Llama 3: the hub's own tokenizer.json to the byte, and what is beside it."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codellama_convert import Options, convert_checkpoint, plan_conversion
from codellama_convert.errors import ConfigError, TokenizerError
from codellama_convert.formats.tiktoken import TiktokenModel, read_tiktoken_model
from codellama_convert.model.marks import llama_3_marks
from codellama_convert.model.releases import SpecialNames
from codellama_convert.tokenizer import llama3_json
from codellama_convert.tokenizer.llama3 import (
    llama3_files,
    llama3_notes,
    llama3_tokenizer_json,
    special_tokens,
)
from tests.refusals import refused
from tests.tokenizer.test_cost import measured
from tests.witness.llama3 import TINY, meta_path, spelled
from tests.witness.vocabularies import write_model

ALONE = Options(model_size="tokenizer_only")
# Of the whole process, as for any model. Where Python compiles the package first, it takes 6 MB more.
MAX_RSS_BYTES = 80_000_000

# Published: of meta-llama/Meta-Llama-3-8B-Instruct and Llama-3.1-8B-Instruct (or 3.2-1B-Instruct).
HUB_SHA256: dict[SpecialNames, str] = {
    "3": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "3.1": "79e3e522635f3171300913bb421464a87de6222182a0570b9b2ccba2a964b2b4",
}
# special_tokens_map.json of Meta-Llama-3-8B
HUB_MAP_SHA256 = "462d91939dbc37178aa5a3eae7068d1990ccc92e09f288cc71f42cdf139d69cc"
BASE_CONFIG = {
    "bos_token": "<|begin_of_text|>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|end_of_text|>",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 1000000000000000019884624838656,
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


@pytest.fixture(scope="module")
def meta() -> TiktokenModel:
    return read_tiktoken_model(meta_path())


@pytest.fixture
def tiny(tmp_path: Path) -> TiktokenModel:
    return read_tiktoken_model(write_model(tmp_path, spelled(TINY)))


@pytest.mark.parametrize("names", ["3", "3.1"])
def test_tokenizer_json_is_the_hubs_to_the_byte(meta: TiktokenModel, names: SpecialNames) -> None:
    content = llama3_tokenizer_json(meta, names)
    digest, n_bytes = hashlib.sha256(), 0
    for chunk in content.chunks():
        digest.update(chunk)
        n_bytes += len(chunk)
    assert digest.hexdigest() == HUB_SHA256[names]
    assert content.n_bytes == n_bytes


def test_planning_spells_no_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of 405B took 3.6 s, a third of it for a list of which only the size is shown."""

    def give_up(tokens: object) -> None:
        raise NotImplementedError(tokens)

    folder = write_model(tmp_path / "Llama3.1-8B", meta_path().read_bytes()).parent
    llama3_json.build_json.cache_clear()
    monkeypatch.setattr(llama3_json, "_merges", give_up)
    content = plan_conversion(folder, ALONE).small_files()["tokenizer.json"]
    assert len(content) == 9_085_657
    with pytest.raises(NotImplementedError):  # the list is made there
        bytes(content)


def test_four_files_are_written_and_the_model_is_unchanged(tiny: TiktokenModel) -> None:
    files = llama3_files(tiny, flavor=None, names="3.1")
    assert sorted(files) == [
        "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    assert files["tokenizer.model"] == spelled(TINY)
    special = bytes(files["special_tokens_map.json"])
    assert hashlib.sha256(special).hexdigest() == HUB_MAP_SHA256
    assert json.loads(bytes(files["tokenizer_config.json"])) == BASE_CONFIG


@pytest.mark.parametrize("flavor", ["instruct", "chat"])
def test_a_model_for_dialogues_ends_its_turns(tiny: TiktokenModel, flavor: Any) -> None:
    files = llama3_files(tiny, flavor=flavor, names="3.1", model_max_length=131072)
    config = json.loads(bytes(files["tokenizer_config.json"]))
    assert "<|start_header_id|>" in config.pop("chat_template")
    ends = {"eos_token": "<|eot_id|>", "model_max_length": 131072}
    assert config == BASE_CONFIG | ends
    special = json.loads(bytes(files["special_tokens_map.json"]))
    assert special == {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


# From Meta's code and the hub's files: place behind the tokens, name in Llama 3, name since 3.1.
NAMED = [
    (0, "begin_of_text", "begin_of_text"),
    (1, "end_of_text", "end_of_text"),
    (2, "reserved_special_token_0", "reserved_special_token_0"),
    (3, "reserved_special_token_1", "reserved_special_token_1"),
    (4, "reserved_special_token_2", "finetune_right_pad_id"),
    (5, "reserved_special_token_3", "reserved_special_token_2"),
    (6, "start_header_id", "start_header_id"),
    (7, "end_header_id", "end_header_id"),
    (8, "reserved_special_token_4", "eom_id"),
    (9, "eot_id", "eot_id"),
    (10, "reserved_special_token_5", "python_tag"),
    (11, "reserved_special_token_6", "reserved_special_token_3"),
    (255, "reserved_special_token_250", "reserved_special_token_247"),
]


@pytest.mark.parametrize(("place", "of_3", "of_3_1"), NAMED)
def test_special_tokens_are_called_as_the_hub_calls_them(place, of_3, of_3_1) -> None:
    for names, expected in (("3", of_3), ("3.1", of_3_1)):
        found = special_tokens(names)
        assert found[place] == f"<|{expected}|>"
        assert len(found) == len(set(found)) == 256


@pytest.mark.parametrize(
    ("flavor", "names", "expected"),
    [
        (None, "3", (128001,)),
        ("base", "3.1", (128001,)),
        ("instruct", "3", (128001, 128009)),
        ("instruct", "3.1", (128001, 128008, 128009)),
        ("chat", "3.1", (128001, 128008, 128009)),
    ],
)
def test_generation_ends_where_metas_does(meta, flavor, names, expected) -> None:
    assert llama_3_marks(len(meta.tokens), names, flavor).stop_ids == expected


def test_a_vocabulary_of_another_size_is_a_note(meta: TiktokenModel, tiny: TiktokenModel) -> None:
    """A file cut behind whole lines has nothing else that could tell."""
    assert llama3_notes(meta) == ()
    (note,) = llama3_notes(tiny)
    assert "272 tokens" in note
    assert "128000" in note


def test_a_class_that_adds_an_id_is_refused(tmp_path: Path) -> None:
    """LlamaTokenizer of transformers 4 gives <unk> the id 128256, one beyond the embedding."""
    write_model(tmp_path, spelled(TINY))
    for name in ("LlamaTokenizer", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"):
        options = Options(model_size="tokenizer_only", tokenizer_class=name)
        with refused(ConfigError, name, "Llama 3", "leave it out"):
            plan_conversion(tmp_path, options)
    for name in (None, "PreTrainedTokenizerFast"):
        plan_conversion(tmp_path, Options(model_size="tokenizer_only", tokenizer_class=name))


# --- merges ---------------------------------------------------------------------------------------


def merges_of(content: Any) -> list[str]:
    return json.loads(bytes(content))["model"]["merges"]


def test_every_split_of_every_token_is_a_merge(tiny: TiktokenModel) -> None:
    """The halves' ranks decide: 'a aaa' stands before 'aa aa' and 'aaa a', as b'a' is no. 158."""
    assert merges_of(llama3_tokenizer_json(tiny, "3.1")) == [
        "a a", "a b", "Ġ a", "a aa", "aa a", "a aaa", "aa aa", "aaa a", "a bab", "ab ab", "b a",
        "b ab", "ba b", "ÿ þ", '" \\', "Ã ©", "Ċ Ċ", "Ń ł", "' s",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_merges_stand_in_the_order_of_the_ranks(tmp_path: Path, seed: int) -> None:
    """As a sort of all of them by (result, left, right) has them."""
    chance = random.Random(seed)
    longer = {bytes(chance.choices(b"ab", k=chance.randint(2, 9))) for _ in range(60)}
    tokens = [bytes([n]) for n in range(256)] + chance.sample(sorted(longer), len(longer))
    rank = {token: number for number, token in enumerate(tokens)}
    splits = [
        (rank[token], rank[token[:cut]], rank[token[cut:]])
        for token in tokens
        for cut in range(1, len(token))
        if {token[:cut], token[cut:]} <= rank.keys()
    ]
    expected = [
        f"{tokens[left].decode()} {tokens[right].decode()}" for _, left, right in sorted(splits)
    ]
    model = read_tiktoken_model(write_model(tmp_path, spelled(tokens)))
    assert len(expected) > 20
    assert merges_of(llama3_tokenizer_json(model, "3")) == expected


# --- cost -----------------------------------------------------------------------------------------


def test_the_size_is_known_before_a_byte_is_written(tmp_path: Path) -> None:
    for tokens in (TINY, TINY[:256], [*TINY, b"\xff\\", b'""', b"\xff\\" + b'""']):
        model = read_tiktoken_model(write_model(tmp_path, spelled(tokens)))
        content = llama3_tokenizer_json(model, "3.1")
        written = bytes(content)
        assert content.n_bytes == len(written)
        assert len(json.loads(written)["model"]["vocab"]) == len(tokens)


def runs(letters: bytes) -> list[bytes]:
    """Every run of a letter: each can be cut anywhere, into two runs."""
    return [bytes([letter]) * n for letter in letters for n in range(2, 257)]


# Of one letter 8.8 MB: n - 1 times six spaces, two quotes, a space, a comma, a line end, n letters.
BYTES_OF_RUNS = sum((n - 1) * (6 + 2 + 1 + 2 + n) for n in range(2, 257))


def test_a_vocabulary_of_substrings_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert 5 * BYTES_OF_RUNS < 32 << 20 < 6 * BYTES_OF_RUNS
    single = [bytes([n]) for n in range(256)]
    path = write_model(tmp_path / "in", spelled([*single, *runs(b"abcdef")]))
    with refused(TokenizerError, str(path), "tokenizer.json", "33554432 bytes"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out", options=ALONE)
    assert not (tmp_path / "out").exists()
    write_model(tmp_path / "in", spelled([*single, *runs(b"abcde")]))
    assert len(plan_conversion(tmp_path / "in", ALONE).small_files()["tokenizer.json"]) > 29_000_000


def test_metas_vocabulary_takes_seconds_of_processor_time() -> None:
    """Two on the machine that this was written on; transformers' own converter takes four to six."""
    start = time.process_time()
    content = llama3_tokenizer_json(read_tiktoken_model(meta_path()), "3.1")
    assert sum(map(len, content.chunks())) == 9_085_657
    assert time.process_time() - start < 5.0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_metas_vocabulary_is_converted_and_verified_in_little_memory(tmp_path: Path) -> None:
    """transformers' own converter takes 605 MB."""
    write_model(tmp_path / "in", meta_path().read_bytes())
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    for command in ((), ("verify",)):
        alone = [*command, *folders, "--model_size", "tokenizer_only"]
        ended, peak = measured(tmp_path, *alone)
        assert ended.returncode == 0, ended.stderr
        assert peak <= MAX_RSS_BYTES, f"{command}: {peak / 1e6:.1f} MB"
    written = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert hashlib.sha256(written).hexdigest() == HUB_SHA256["3.1"]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_the_largest_vocabulary_is_converted_in_bounded_memory(tmp_path: Path) -> None:
    tokens = [bytes([n]) for n in range(256)]
    tokens += [n.to_bytes(3, "big") for n in range((1 << 17) - 256)]
    write_model(tmp_path / "in", spelled(tokens))
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    ended, peak = measured(tmp_path, *folders, "--model_size", "tokenizer_only")
    assert ended.returncode == 0, ended.stderr
    assert peak <= MAX_RSS_BYTES, f"{peak / 1e6:.1f} MB"
