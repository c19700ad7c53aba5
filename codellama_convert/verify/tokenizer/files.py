"""Own the check of the tokenizer files where tokenizer.model is SentencePiece's: Llama 1, 2, Code Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from codellama_convert.errors import VerifyError
from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tokenizer.chat_templates import chat_template
from codellama_convert.verify.config import Marks
from codellama_convert.verify.report import Problems, check_json
from codellama_convert.verify.tokenizer.tokenizer_json import INFILLING, STEP, check_tokenizer_json

_INFILLING_CLASSES = ("CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
# transformers' own spelling of "no limit": the float 1e30, as a whole number.
NO_LIMIT = 1000000000000000019884624838656
_Model = TypeVar("_Model", bound=TokenizerModel)


def check_tokenizer(
    folder: Path,
    model: SentencePieceModel,
    *,
    context: int | None,
    chat: bool,
    tokenizer_class: str | None,
    problems: Problems,
) -> None:
    """Compare the tokenizer files with the source's tokenizer.model.

    Args:
        folder: The output.
        model: The source.
        context: Tokens of context; None for no limit.
        chat: Whether it is a chat model.
        tokenizer_class: What tokenizer_config.json names, if anything.
        problems: Gets what differs.
    """
    config = _config(model, context=context, chat=chat, tokenizer_class=tokenizer_class)
    check_files(
        folder, model, check_tokenizer_json,
        config=config, special_tokens=_special_tokens(model), problems=problems,
    )  # fmt: skip


def check_files(
    folder: Path,
    model: _Model,
    check_vocabulary: Callable[[Path, _Model, Problems], None],
    *,
    config: Mapping[str, Any],
    special_tokens: Mapping[str, Any],
    problems: Problems,
) -> None:
    """Compare four files with what is expected in them; one that cannot be read hides no other.

    Args:
        folder: The output.
        model: What tokenizer.model is a copy of.
        check_vocabulary: Compares tokenizer.json.
        config: Of tokenizer_config.json.
        special_tokens: Of special_tokens_map.json.
        problems: Gets what differs.
    """
    for check in (_check_copy, check_vocabulary):
        try:
            check(folder, model, problems)
        except VerifyError as problem:  # noqa: PERF203 - the other files are still worth reading
            problems.add_error(problem)
    check_json(folder / "tokenizer_config.json", config, problems)
    check_json(folder / "special_tokens_map.json", special_tokens, problems)


def marks_of(model: SentencePieceModel) -> Marks:
    """Find the ids that begin and end a text."""
    return Marks(model.bos_id, model.eos_id, model.id_of(STEP))


def _check_copy(folder: Path, model: TokenizerModel, problems: Problems) -> None:
    """Compare tokenizer.model with the source's, byte for byte."""
    with InputFile(folder / "tokenizer.model", error=VerifyError) as file:
        # The sizes first: what lies there may be of any size.
        if file.n_bytes != len(model.raw) or file.read_exact(0, file.n_bytes) != model.raw:
            problems.add("tokenizer.model differs from the source's", about=["tokenizer.model"])


def _special_tokens(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "bos_token": model.pieces[model.bos_id].text,
        "eos_token": model.pieces[model.eos_id].text,
        "unk_token": model.pieces[model.unk_id].text,
    }


def _config(
    model: SentencePieceModel, *, context: int | None, chat: bool, tokenizer_class: str | None
) -> dict[str, Any]:
    expected: dict[str, Any] = _special_tokens(model) | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": NO_LIMIT if context is None else context,
        "padding_side": "left",
    }
    if tokenizer_class is not None:
        expected["tokenizer_class"] = tokenizer_class
    has_infilling = all(model.id_of(name) is not None for name in INFILLING)
    if tokenizer_class in _INFILLING_CLASSES and not has_infilling:
        # Left out, these classes invent the pieces, with ids beyond the embedding.
        for role in ("prefix", "middle", "suffix", "eot", "fill"):
            expected[f"{role}_token"] = None
    if chat:
        # Meta's dialogue form is one text, which both sides take from where it is explained.
        expected["chat_template"] = chat_template(step=model.id_of(STEP) is not None)
    return expected
