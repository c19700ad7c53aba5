"""Own the check of the files beside the ranks: params.json, and tokenizer.model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConvertError, VerifyError, shown
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.model.config import ModelConfig, parse_params
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.releases import PARAMS_TEXTS
from codellama_convert.storage.digests import file_digest
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.output_files import (
    first_other_byte,
    parse_json,
    read_small,
)
from codellama_convert.verify.ranks.folder import CHECKLIST_NAME, PARAMS_NAME, TOKENIZER_NAME
from codellama_convert.verify.report import Problems

# Meta's loaders take keys as arguments: any other ends them.
_KEYS = frozenset({
    "dim", "ffn_dim_multiplier", "multiple_of", "n_heads", "n_kv_heads", "n_layers", "norm_eps",
    "rope_theta", "vocab_size",
})  # fmt: skip
_WIDTH, _SCALED = "the width of the feed-forward network", "use_scaled_rope"
_THETA_OF_2, _THETA_OF_3 = 10000.0, 500000.0  # what they take where the file says none
_MORE_BYTES = 1 << 16


def check_params(
    folder: Path, config: ModelConfig, own: bytes | None, problems: Problems, *, comes_back: bool
) -> None:
    """Compare params.json with the model: what Meta's code builds of it, and how it is spelled.

    Args:
        folder: The output.
        config: The model, from the source.
        own: The file of the ranks before, where that is known.
        problems: Gets what differs.
        comes_back: Whether it must be that file.
    """
    path = folder / PARAMS_NAME
    theta = _THETA_OF_3 if config.generation == LLAMA_3 else _THETA_OF_2
    try:
        raw = read_small(path)
        found = parse_json(raw, path)
        said = _said_in(raw, path, theta)
        expected = _said_of(config)
        if own is not None and comes_back:
            # Some of Meta's leave the number of rows to the tokenizer, or the width to the tensors.
            before = _said_in(own, path, theta)
            expected |= {key: before[key] for key in (_WIDTH, "vocab_size")}
    except ConvertError as problem:
        problems.add_error(problem)
        return
    is_metas = raw in (own, *(text.encode() for text in PARAMS_TEXTS.values()))
    if is_metas and not comes_back and said["vocab_size"] is None:
        said["vocab_size"] = config.vocab_size
    wrong = problems.add_differences(PARAMS_NAME, said, expected)
    known = _KEYS | {_SCALED} if config.scaled_rope else _KEYS
    unknown = [] if comes_back else sorted(found.keys() - known)
    for key in unknown:
        problems.add(f"has {shown(key)}, which Meta's code does not know", file=PARAMS_NAME)
    if wrong or unknown:
        return
    if own is not None and comes_back:
        problems.add_spelling(PARAMS_NAME, raw, [own])
    elif not is_metas:
        problems.add_spelling(PARAMS_NAME, raw, [json.dumps(found).encode() + b"\n"])


def _said_in(raw: bytes, path: Path, theta: float) -> dict[str, Any]:
    """List what Meta's code takes from params.json."""
    params, _ = parse_params(raw, path)
    return {
        "dim": params.dim,
        "n_heads": params.n_heads,
        "n_kv_heads": params.key_value_heads(),
        "n_layers": params.n_layers,
        "norm_eps": params.norm_eps,
        "rope_theta": theta if params.rope_theta is None else params.rope_theta,
        _WIDTH: params.feed_forward_width(),
        _SCALED: params.use_scaled_rope,
        "vocab_size": params.vocab_size,
    }


def _said_of(config: ModelConfig) -> dict[str, Any]:
    """List what it must be."""
    return {
        "dim": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        _WIDTH: config.intermediate_size,
        _SCALED: config.scaled_rope,
        "vocab_size": config.vocab_size,
    }


def check_tokenizer_model(
    folder: Path, model: TokenizerModel, n_rows: int, problems: Problems
) -> None:
    """Compare tokenizer.model with the source's, byte for byte, and its pieces with the rows.

    Args:
        folder: The output.
        model: The source's.
        n_rows: Of the vocabulary that the ranks must hold.
        problems: Gets what differs.
    """
    try:
        raw = read_small(folder / TOKENIZER_NAME, len(model.raw) + _MORE_BYTES)
    except VerifyError as problem:
        problems.add_error(problem)
        return
    other = first_other_byte(raw, [model.raw])
    if other is not None:
        problems.add(f"is not {model.path}: {other}", file=TOKENIZER_NAME)
    if model.n_pieces != n_rows:
        problems.add(
            f"has {model.n_pieces} pieces, and the ranks {n_rows} rows of the embedding: Meta's "
            "loader needs the same number",
            file=TOKENIZER_NAME,
        )


def check_checklist(folder: Path, names: Sequence[str], problems: Problems) -> None:
    """Compare checklist.chk with the MD5 sums of all that lies beside it.

    Args:
        folder: The output.
        names: The files that it lists, in order.
        problems: Gets what differs.
    """
    try:
        raw = read_small(folder / CHECKLIST_NAME)
        sums = [file_digest(folder / n, "md5", error=VerifyError, watch=Watch()) for n in names]
    except VerifyError as problem:
        problems.add_error(problem)
        return
    expected = "".join(f"{md5}  {name}\n" for md5, name in zip(sums, names, strict=True))
    other = first_other_byte(raw, [expected.encode()])
    if other is not None:
        problems.add(f"is not the list of these files: {other}", file=CHECKLIST_NAME)
