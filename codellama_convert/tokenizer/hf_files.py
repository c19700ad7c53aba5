"""Own the tokenizer files of a Hugging Face folder whose tokenizer.model is SentencePiece's.

Every choice here was measured against sentencepiece under transformers 4.57 and 5.23.
"""

from __future__ import annotations

import json
from itertools import compress, pairwise
from typing import Any

from codellama_convert.choices import Flavor, TokenizerClass
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.sentencepiece_message import PieceType
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.storage.contents import Content
from codellama_convert.tokenizer.chat_templates import chat_template
from codellama_convert.tokenizer.tokenizer_json import INFILLING_PIECES, STEP_PIECE, tokenizer_json

# The one that both versions load as the file says, with or without a config.json beside it.
DEFAULT_TOKENIZER_CLASS: TokenizerClass = "PreTrainedTokenizerFast"
CHAT_FLAVORS = ("instruct", "chat")

# transformers' own spelling of "no limit".
NO_LIMIT = int(1e30)

CODE_LLAMA_NOTE = (
    "tokenizer_class {name}: transformers 4.57 then splits at <FILL_ME> itself (correctly except for an"
    " empty prefix or suffix and, in the fast class, for lists); transformers 5.x loses a leading space"
    " of the text, builds most infilling prompts wrongly and gives <FILL_ME> an id beyond the embedding"
)
LLAMA_NOTE = (
    "tokenizer_class {name}: transformers 4.57 is exact; transformers 5.x loses a leading space of the"
    " text"
)
# What a class other than the default costs.
CLASS_NOTES: tuple[tuple[TokenizerClass, str], ...] = (
    ("CodeLlamaTokenizer", CODE_LLAMA_NOTE),
    ("CodeLlamaTokenizerFast", CODE_LLAMA_NOTE),
    ("LlamaTokenizer", LLAMA_NOTE),
)


def tokenizer_files(
    model: SentencePieceModel,
    *,
    flavor: Flavor | None,
    tokenizer_class: str = DEFAULT_TOKENIZER_CLASS,
    model_max_length: int | None = None,
) -> dict[str, Content]:
    """Build the tokenizer files of a Hugging Face folder.

    Args:
        model: The tokenizer.model of the checkpoint.
        flavor: What the model was tuned for; "instruct" and "chat" get a chat template. None if
            unknown, which is treated as "base".
        tokenizer_class: A name of `TOKENIZER_CLASSES`, which `AutoTokenizer` then returns.
        model_max_length: Tokens of context that the model was trained for; None for no limit.

    Returns:
        File name and content: tokenizer.model (unchanged), tokenizer.json, tokenizer_config.json,
        special_tokens_map.json.

    Raises:
        TokenizerError: If tokenizer.json were far larger than that of any vocabulary in use.
    """
    config = _tokenizer_config(model, model_max_length or NO_LIMIT)
    config["tokenizer_class"] = tokenizer_class
    if tokenizer_class.startswith("CodeLlama") and not has_infilling(model):
        # Where they are absent, both versions invent these pieces, with ids beyond the embedding.
        for role in ("prefix", "middle", "suffix", "eot", "fill"):
            config[f"{role}_token"] = None
    if flavor in CHAT_FLAVORS:
        config["chat_template"] = chat_template(step=model.id_of(STEP_PIECE) is not None)
    return {
        "tokenizer.model": model.raw,
        "tokenizer.json": tokenizer_json(model),
        "tokenizer_config.json": small_json(config),
        "special_tokens_map.json": small_json(_special_tokens(model)),
    }


def stop_token_ids(model: SentencePieceModel, *, flavor: Flavor | None) -> tuple[int, ...]:
    """List the ids at which Meta's code ends a completion or an answer, for `eos_token_id`.

    Args:
        model: The tokenizer.model of the checkpoint.
        flavor: What the model was tuned for, None if unknown.

    Returns:
        The end-of-sequence id; for "instruct" and "chat" that of `<step>` too, where there is one.

    Source:
        meta-llama/codellama llama/generation.py, `chat_completion`.
    """
    step_id = model.id_of(STEP_PIECE) if flavor in CHAT_FLAVORS else None
    return (model.eos_id,) if step_id is None else (model.eos_id, step_id)


def check_embedding_rows(
    model: TokenizerModel, n_rows: int, *, is_released: bool
) -> tuple[str, ...]:
    """Refuse a tokenizer that does not belong to the weights.

    Args:
        model: The tokenizer.model of the checkpoint.
        n_rows: Rows of the checkpoint's embedding.
        is_released: Whether the weights are a released model's, whose rows all have pieces.

    Returns:
        A note if the embedding has more rows than that, after padding or a merge of vocabularies.

    Raises:
        TokenizerError: If the embedding has fewer rows than there are pieces, or, of a released
            model, more.
    """
    n_more = n_rows - model.n_pieces
    if n_more < 0 or (n_more and is_released):
        raise TokenizerError(
            f"has {model.n_pieces} pieces but the checkpoint's embedding has {n_rows} rows: "
            "they do not belong together",
            path=model.path,
            hint="name the right one with --tokenizer_model",
        )
    if not n_more:
        return ()
    note = (
        f"the embedding has {n_rows} rows, {n_more} more than tokenizer.model has pieces: "
        f"vocab_size is {n_rows}, and no text gives the ids from {model.n_pieces} on"
    )
    return (note,)


def has_infilling(model: TokenizerModel) -> bool:
    """Return whether the model has all four infilling pieces; Llama 3's has none."""
    return isinstance(model, SentencePieceModel) and all(
        model.id_of(name) is not None for name in INFILLING_PIECES
    )


def tokenizer_notes(
    model: SentencePieceModel, *, tokenizer_class: str | None = None
) -> tuple[str, ...]:
    """Say what a user should know: the price of a class, and pieces that make ids inexact.

    Args:
        model: The tokenizer.model of the checkpoint.
        tokenizer_class: As given to `tokenizer_files`.

    Returns:
        One line each; empty for Meta's models with the default class.
    """
    notes = [text.format(name=name) for name, text in CLASS_NOTES if name == tokenizer_class]
    user_defined = model.pieces.texts_of(PieceType.USER_DEFINED)
    if user_defined:
        notes.append(
            f"user-defined pieces ({user_defined[0]!r}; {len(user_defined)} in all): Hugging Face puts a"
            " space after each one, sentencepiece does not"
        )
    normal = model.pieces.texts_of(PieceType.NORMAL)
    orphans = sorted(set().union(*normal).difference(normal))
    if orphans:
        notes.append(
            f"characters that occur only in longer pieces ({orphans[0]!r}; {len(orphans)} in all):"
            " Hugging Face writes them as bytes, sentencepiece merges them"
        )
    tied = _tied_pieces(model)
    if tied:
        notes.append(
            f"pieces with equal scores ({tied[0]!r}; {len(tied)} in all): sentencepiece merges"
            " the leftmost first, Hugging Face the first in its list"
        )
    return tuple(notes)


def _tied_pieces(model: SentencePieceModel) -> list[str]:
    """List pieces that share a score, but not spaces and infilling pieces: those are exact."""
    normal = int(PieceType.NORMAL)
    is_normal = [kind == normal for kind in model.pieces.types]
    scores = sorted(compress(model.pieces.scores, is_normal))
    shared = {one for one, other in pairwise(scores) if one == other}
    return [
        text
        for text, score in compress(
            zip(model.pieces.texts, model.pieces.scores, strict=True), is_normal
        )
        if score in shared and text.strip("▁") and not text.startswith("▁<") and text != STEP_PIECE
    ]


def _tokenizer_config(model: SentencePieceModel, model_max_length: int) -> dict[str, Any]:
    # `add_prefix_space` and `fill_token` are absent on purpose: any value of the one makes a class of
    # transformers 4 inexact, the other gets an id beyond the embedding in transformers 5.
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        **_special_tokens(model),
        # Otherwise transformers 4 damages decoded text.
        "clean_up_tokenization_spaces": False,
        # Otherwise the slow class of transformers 4 drops a leading space when it decodes.
        "legacy": False,
        # Otherwise PreTrainedTokenizerFast returns token_type_ids, which generate() refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        # Generation continues after the last token, so padding goes first.
        "padding_side": "left",
    }


def _special_tokens(model: SentencePieceModel) -> dict[str, str]:
    roles = (("bos", model.bos_id), ("eos", model.eos_id), ("unk", model.unk_id))
    return {f"{role}_token": model.pieces[number].text for role, number in roles}


def small_json(content: dict[str, Any]) -> bytes:
    """Write a small file: sorted keys, two spaces, a final line break."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
