"""Own the check of Llama 3's tokenizer files: whatever in them changes an id, a text or a prompt.

What they should hold is spelled here a second time, so that a mistake of the writer is seen: the
merges are not generated and compared, they are compared with the rule that orders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.tiktoken import TiktokenModel
from codellama_convert.model.releases import SpecialNames
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tokenizer.chat_templates import HEADER_TEMPLATE
from codellama_convert.verify.report import Problems
from codellama_convert.verify.tokenizer.files import NO_LIMIT, check_files
from codellama_convert.verify.tokenizer.long_json import what_differs

# The first special tokens; all others are reserved ones.
_OF_3 = (
    "begin_of_text", "end_of_text", *(f"reserved_special_token_{n}" for n in range(4)),
    "start_header_id", "end_header_id", "reserved_special_token_4", "eot_id",
)  # fmt: skip
_OF_3_1 = (
    "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
    "finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id",
    "eom_id", "eot_id", "python_tag",
)  # fmt: skip
_LAST_OF_3, _LAST_OF_3_1 = 250, 247  # the number of the last reserved one
_BEGIN, _END, _END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def check_llama3_tokenizer(
    folder: Path,
    model: TiktokenModel,
    *,
    context: int | None,
    chat: bool,
    names: SpecialNames,
    problems: Problems,
) -> None:
    """Compare the tokenizer files with the source's tokenizer.model.

    Args:
        folder: The output.
        model: The source.
        context: Tokens of context; None for no limit.
        chat: Whether it is a chat model.
        names: Whose names the special tokens have.
        problems: Gets what differs.
    """
    ends = {"bos_token": _BEGIN, "eos_token": _END_OF_TURN if chat else _END}
    config = ends | {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": NO_LIMIT if context is None else context,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if chat:
        # Meta's dialogue form is one text, which both sides take from where it is explained.
        config["chat_template"] = HEADER_TEMPLATE
    check_vocabulary = partial(_check_tokenizer_json, names=names)
    check_files(
        folder, model, check_vocabulary, config=config, special_tokens=ends, problems=problems
    )


def _check_tokenizer_json(
    folder: Path, model: TiktokenModel, problems: Problems, *, names: SpecialNames
) -> None:
    characters = _characters()
    vocabulary = ("".join(map(characters.__getitem__, token)) for token in model.tokens)
    wrong_pair = partial(
        _wrong_pair, model=model, byte_of=dict(zip(characters, range(256), strict=True))
    )
    whole = _frame(model, names) | {"model": _settings() | {"vocab": {}}}
    with InputFile(folder / "tokenizer.json", error=VerifyError) as file:
        wrong = what_differs(file, whole, vocabulary, wrong_pair)
    if wrong is not None:
        problems.add(wrong, file="tokenizer.json")


def _characters() -> tuple[str, ...]:
    """Spell each byte as a character that prints: as Latin-1 has it, or else from U+0100 on."""
    latin = (chr(byte) for byte in range(256))
    others = map(chr, range(0x100, 0x200))
    return tuple(one if one.isprintable() and one != " " else next(others) for one in latin)


def _wrong_pair(
    merges: Iterable[str], *, model: TiktokenModel, byte_of: Mapping[str, int]
) -> str | None:
    """Describe the first pair that stands where it may not, or say that some are missing.

    Every cut of a token into two others stands there once: by the rank of the whole, then of the
    left half, then of the right one.
    """
    ranks = {token: rank for rank, token in enumerate(model.tokens)}

    def place_of(pair: str) -> tuple[int, int, int] | None:
        try:
            left, right = (bytes(map(byte_of.__getitem__, half)) for half in pair.split(" "))
            return ranks[left + right], ranks[left], ranks[right]
        except (KeyError, ValueError):  # another character, another number of spaces, no token
            return None

    last = (-1, -1, -1)
    n_found = 0
    for number, pair in enumerate(merges):
        n_found += 1
        place = place_of(pair)
        if place is None:
            return f"merge {number} is {shown(pair)}, which does not make a token"
        if place <= last:
            return f"merge {number} is {shown(pair)}, which belongs further up"
        last = place
    n_expected = sum(
        token[:cut] in ranks and token[cut:] in ranks
        for token in ranks
        for cut in range(1, len(token))
    )
    return None if n_found == n_expected else f"{n_found} merges, expected {n_expected}"


def _special_tokens(names: SpecialNames) -> Iterator[str]:
    first, last = (_OF_3, _LAST_OF_3) if names == "3" else (_OF_3_1, _LAST_OF_3_1)
    n_reserved = sum(name.startswith("reserved") for name in first)
    for name in (*first, *(f"reserved_special_token_{n}" for n in range(n_reserved, last + 1))):
        yield f"<|{name}|>"


def _frame(model: TiktokenModel, names: SpecialNames) -> dict[str, Any]:
    """Spell what surrounds the model in tokenizer.json, after the hub's own file."""
    bos_first, bos_second = ({"SpecialToken": {"id": _BEGIN, "type_id": n}} for n in (0, 1))
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    n_tokens = len(model.tokens)
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name, **dict.fromkeys(flags, False), "special": True}
            for number, name in enumerate(_special_tokens(names), n_tokens)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": "|".join(_WORDS)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level("trim_offsets"),
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                _byte_level("add_prefix_space", "use_regex"),
                {
                    "type": "TemplateProcessing",
                    "single": [bos_first, first],
                    "pair": [bos_first, first, bos_second, second],
                    "special_tokens": {
                        _BEGIN: {"id": _BEGIN, "ids": [n_tokens], "tokens": [_BEGIN]}
                    },
                },
            ],
        },
        "decoder": _byte_level("add_prefix_space", "trim_offsets", "use_regex"),
    }


def _byte_level(*on: str) -> dict[str, Any]:
    names = ("add_prefix_space", "trim_offsets", "use_regex")
    return {"type": "ByteLevel", **{name: name in on for name in names}}


def _settings() -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
    }
