"""Llama 3: no id and no text differs from Meta's own Tokenizer, and no dialogue from its ChatFormat."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from codellama_convert.formats.tiktoken import read_tiktoken_model
from codellama_convert.tokenizer.llama3 import llama3_files, llama3_tokenizer_json
from tests.witness.llama3 import (
    N_TOKENS,
    SPECIAL_LITERALS,
    many_texts,
    meta_ids,
    meta_path,
    meta_tokenizer,
    write_folder,
)

V4 = transformers.__version__.startswith("4.")
BOS = 128000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = read_tiktoken_model(meta_path())
    files = llama3_files(model, flavor="instruct", names="3.1", model_max_length=131072)
    return write_folder(tmp_path_factory.mktemp("llama3"), files)


@pytest.fixture(scope="module")
def library(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto(folder: Path) -> Any:
    return auto_tokenizer(folder)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return meta_ids(many_texts())


def auto_tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        # transformers 4.57 and its libraries import deprecated names of each other.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return transformers.AutoTokenizer.from_pretrained(folder)


def library_ids(tokenizer: Tokenizer, texts: Any) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def n_different(found: list[list[int]], expected: list[list[int]]) -> int:
    assert len(found) == len(expected)
    return sum(a != b for a, b in zip(found, expected, strict=True))


def test_the_texts_are_many_and_varied() -> None:
    texts = many_texts()
    assert len(texts) == len(set(texts)) > 10_000
    assert "" in texts
    assert any("\ufffd" in text for text in texts)
    used = {number for ids in meta_ids(texts) for number in ids}
    assert len(used) > 20_000


def test_the_tokenizers_library_gives_metas_ids(
    library: Tokenizer, expected: list[list[int]]
) -> None:
    assert n_different(library_ids(library, many_texts()), expected) == 0


def test_auto_tokenizer_gives_metas_ids(auto: Any, expected: list[list[int]]) -> None:
    encoded = auto(list(many_texts()))
    assert n_different(encoded["input_ids"], expected) == 0
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_every_token_that_is_a_text_is_itself(library: Tokenizer) -> None:
    """588 of them are not what BPE makes of their own bytes."""
    texts = (meta_tokenizer().decode([number]) for number in range(N_TOKENS))
    whole = [(number, text) for number, text in enumerate(texts) if "\ufffd" not in text]
    assert len(whole) > 126_000
    expected = [[BOS, number] for number, _ in whole]
    assert n_different(library_ids(library, [text for _, text in whole]), expected) == 0


def test_decoding_gives_the_text_back(auto: Any, expected: list[list[int]]) -> None:
    found = auto.batch_decode(expected, skip_special_tokens=True)
    assert [text for text, back in zip(many_texts(), found, strict=True) if text != back] == []
    chance = random.Random(1)
    rows = [chance.choices(range(N_TOKENS), k=5) for _ in range(2000)]
    decode = meta_tokenizer().decode
    assert auto.batch_decode(rows) == [decode(row) for row in rows]


def test_no_id_lies_beyond_the_embedding(auto: Any) -> None:
    assert len(auto) == 128256
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (BOS, 128009, None)
    assert auto.model_max_length == 131072
    assert auto.convert_tokens_to_ids("<|python_tag|>") == 128010


def test_only_literal_special_tokens_differ(auto: Any) -> None:
    expected = meta_ids(SPECIAL_LITERALS)
    assert n_different(auto(list(SPECIAL_LITERALS))["input_ids"], expected) == len(expected)
    found = auto(list(SPECIAL_LITERALS), split_special_tokens=True)["input_ids"]
    assert n_different(found, expected) == 0


def test_runs_that_metas_code_cuts_differ(auto: Any) -> None:
    """It encodes 25,000 characters of a run at a time; no tokenizer.json can say so."""
    exact, cut = " " * 25_000, " " * 25_001
    assert auto(exact)["input_ids"] == meta_ids([exact])[0]
    assert auto(cut)["input_ids"] != meta_ids([cut])[0]
    assert auto.decode(meta_ids([cut])[0], skip_special_tokens=True) == cut


# --- planted faults -------------------------------------------------------------------------------


def changed(folder: Path, key: str, change: Any) -> Tokenizer:
    content = json.loads((folder / "tokenizer.json").read_bytes())
    content["model"][key] = change(content["model"][key])
    return Tokenizer.from_str(json.dumps(content))


def one_of_each(merges: list[str]) -> list[str]:
    """Keep for each token its first split only."""
    return list({"".join(merge.split(" ")): merge for merge in reversed(merges)}.values())[::-1]


@pytest.mark.parametrize(
    ("key", "change", "at_least"),
    [
        ("merges", one_of_each, 50),
        ("ignore_merges", lambda _: False, 5),
    ],
)
def test_a_changed_file_is_found_different(
    folder: Path, expected: list[list[int]], key: str, change: Any, at_least: int
) -> None:
    found = library_ids(changed(folder, key, change), many_texts())
    assert n_different(found, expected) >= at_least


@pytest.mark.skipif(not V4, reason="transformers 5 sees what tokenizer.json is, and switches")
def test_another_class_adds_an_id_in_transformers_4(tmp_path: Path, folder: Path) -> None:
    """Why `tokenizer_class` is never left out, nor another one taken."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files["tokenizer_config.json"])
    config["tokenizer_class"] = "LlamaTokenizerFast"
    files["tokenizer_config.json"] = json.dumps(config).encode()
    assert len(auto_tokenizer(write_folder(tmp_path, files))) == 128257


# --- dialogues ------------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant", "ipython")
CONTENTS = (
    "Hi there!", "  spaced \n", "def f(x):\n\treturn x", "\n\nindented", "你好 🙂 e\u0301", "", " \n ",
    "{{ braces }} {% percent %} 'quotes' \"double\" \\n", "a" + " " * 40 + "b", "1234567", "\u00a0x\u3000",
)  # fmt: skip


def chat_format_ids(messages: list[dict[str, str]]) -> list[int]:
    """Encode a dialogue, of stripped contents, and the header of the answer as Meta's code does."""
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat

    raw = [
        RawMessage(
            role="tool" if message["role"] == "ipython" else message["role"],
            content=message["content"].strip(),
            **({"call_id": "0"} if message["role"] == "ipython" else {}),
        )
        for message in messages
    ]
    return ChatFormat(meta_tokenizer()).encode_dialog_prompt(raw).tokens


def template_ids(auto: Any, messages: list[dict[str, Any]], *, reply: bool = True) -> list[int]:
    encoded = auto.apply_chat_template(
        messages, add_generation_prompt=reply, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def dialogues() -> list[list[dict[str, str]]]:
    chance = random.Random(5)
    single = [[{"role": role, "content": text}] for role in ROLES for text in CONTENTS]
    texts = [*CONTENTS, *chance.sample(many_texts(), 300)]
    longer = [
        [
            {"role": chance.choice(ROLES), "content": chance.choice(texts)}
            for _ in range(chance.randint(2, 7))
        ]
        for _ in range(300)
    ]
    return [*single, *longer]


def test_dialogues_have_metas_ids(auto: Any) -> None:
    for messages in dialogues():
        assert template_ids(auto, messages) == chat_format_ids(messages), messages


def test_the_published_example_is_what_it_should_be(auto: Any) -> None:
    """Spelled by hand: begin, header of user, text, end of turn, header of assistant."""
    assert template_ids(auto, [{"role": "user", "content": "Hi there!"}]) == [
        BOS, 128006, 882, 128007, 271, 13347, 1070, 0, 128009, 128006, 78191, 128007, 271,
    ]  # fmt: skip


def test_a_finished_dialogue_has_no_header_after_it(auto: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    found = template_ids(auto, messages, reply=False)
    assert found == chat_format_ids(messages)[: len(found)]
    assert found[-1] == 128009
    assert len(chat_format_ids(messages)) == len(found) + 4


def test_what_a_tool_says_is_ipythons(auto: Any) -> None:
    of_tool, of_ipython = ([{"role": role, "content": "42"}] for role in ("tool", "ipython"))
    assert template_ids(auto, of_tool) == template_ids(auto, of_ipython)


def test_no_date_is_written_and_every_call_gives_the_same(auto: Any) -> None:
    (text,) = {
        auto.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) for _ in "ab"
    }
    assert text == ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>")


@pytest.mark.parametrize(
    ("message", "more", "fact"),
    [
        ({"role": "User", "content": "x"}, {}, "roles must be"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, {}, "tool calls"),
        ({"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {}, "tool calls"),
        ({"role": "user", "content": "x"}, {"tools": [{"name": "f"}]}, "tools are not written"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, {}, "must be a string"),
        ({"role": "user", "content": None}, {}, "must be a string"),
        ({"role": "tool", "content": 42}, {}, "must be a string"),
        ({"role": "user"}, {}, "must be a string"),
    ],
)
def test_what_the_template_cannot_say_is_refused(auto: Any, message, more, fact) -> None:
    with pytest.raises(TemplateError, match=fact):
        auto.apply_chat_template([message], tokenize=False, **more)


def test_llama_3_itself_has_the_same_dialogues(auto: Any) -> None:
    """The ids of its special tokens are the same, under other names where no dialogue needs them."""
    model = read_tiktoken_model(meta_path())
    older = Tokenizer.from_str(bytes(llama3_tokenizer_json(model, "3")).decode())
    messages = [{"role": role, "content": "x"} for role in ROLES]
    text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert older.encode(text, add_special_tokens=False).ids == template_ids(auto, messages)
    assert older.token_to_id("<|reserved_special_token_4|>") == 128008
    assert older.token_to_id("<|eom_id|>") is None
