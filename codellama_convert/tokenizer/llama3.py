"""Own the tokenizer files of a Hugging Face folder of Llama 3, and the names of its special tokens.

Source: meta-llama/llama3 and meta-llama/llama-models, tokenizer.py; the hub's own files.
"""

from __future__ import annotations

from typing import Any

from codellama_convert.choices import Flavor
from codellama_convert.formats.tiktoken import N_SPECIAL_TOKENS, TiktokenModel
from codellama_convert.model.releases import SpecialNames
from codellama_convert.storage.contents import Chunked, Content
from codellama_convert.tokenizer.chat_templates import HEADER_TEMPLATE
from codellama_convert.tokenizer.hf_files import (
    CHAT_FLAVORS,
    DEFAULT_TOKENIZER_CLASS,
    NO_LIMIT,
    small_json,
)
from codellama_convert.tokenizer.llama3_json import build_json

N_RELEASED_TOKENS = 128_000

# By their place behind the tokens; all others are reserved ones, numbered as they come.
_NAMES: dict[SpecialNames, dict[int, str]] = {
    "3": {
        0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id",
    },
    "3.1": {
        0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id",
        7: "end_header_id", 8: "eom_id", 9: "eot_id", 10: "python_tag",
    },
}  # fmt: skip
_BEGIN, _END, _END_OF_TURN = 0, 1, 9


def special_tokens(names: SpecialNames) -> tuple[str, ...]:
    """List the special tokens, by their place behind the tokens of the file."""
    named = _NAMES[names]
    reserved = [place for place in range(N_SPECIAL_TOKENS) if place not in named]
    contents = named | {place: f"reserved_special_token_{n}" for n, place in enumerate(reserved)}
    return tuple(f"<|{contents[place]}|>" for place in range(N_SPECIAL_TOKENS))


def llama3_files(
    model: TiktokenModel,
    *,
    flavor: Flavor | None,
    names: SpecialNames,
    model_max_length: int | None = None,
) -> dict[str, Content]:
    """Build the tokenizer files of a Hugging Face folder.

    Args:
        model: The tokenizer.model of the checkpoint.
        flavor: What the model was tuned for; "instruct" and "chat" get a chat template. None if
            unknown, which is treated as "base".
        names: Which special tokens it was trained with.
        model_max_length: Tokens of context that the model was trained for; None for no limit.

    Returns:
        File name and content: tokenizer.model (unchanged), tokenizer.json, tokenizer_config.json,
        special_tokens_map.json.

    Raises:
        TokenizerError: If tokenizer.json were far larger than that of any vocabulary in use.
    """
    special = special_tokens(names)
    ends = {"bos_token": special[_BEGIN], "eos_token": special[_END]}
    config: dict[str, Any] = {}
    if flavor in CHAT_FLAVORS:
        ends["eos_token"] = special[_END_OF_TURN]
        config["chat_template"] = HEADER_TEMPLATE
    config |= {
        **ends,
        # Else transformers 4 damages decoded text.
        "clean_up_tokenization_spaces": False,
        # Else transformers 4 returns token_type_ids, which generate() refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length or NO_LIMIT,
        # Generation continues after the last token, so padding goes first.
        "padding_side": "left",
        # Every other class that transformers 4 has adds a token beyond the embedding.
        "tokenizer_class": DEFAULT_TOKENIZER_CLASS,
    }
    return {
        "tokenizer.model": model.raw,
        "tokenizer.json": llama3_tokenizer_json(model, names),
        "tokenizer_config.json": small_json(config),
        "special_tokens_map.json": small_json(ends),
    }


def llama3_tokenizer_json(model: TiktokenModel, names: SpecialNames) -> Chunked:
    """Write tokenizer.json with these special tokens; `build_json` says how, and what it refuses."""
    return build_json(model, special_tokens(names))


def llama3_notes(model: TiktokenModel) -> tuple[str, ...]:
    """Say what a user should know: a vocabulary of another size than Meta's may be cut short."""
    if len(model.tokens) == N_RELEASED_TOKENS:
        return ()
    note = f"tokenizer.model has {len(model.tokens)} tokens, Llama 3's has {N_RELEASED_TOKENS}"
    return (note,)
