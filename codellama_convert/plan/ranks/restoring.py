"""Own the use of a folder's conversion.json on the way back: how Meta's files were saved.

Anybody may have written it. It changes where the tensors lie in the ranks and what lies between
them; it never decides what is read, and a value that does not fit the model is a ValueError.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.hugging_face.config_json import json_bytes
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.model.config import ModelConfig, build_config, parse_params
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.ranks.original import Original, parse_original
from codellama_convert.plan.ranks.plan import RankPlan, rank_name
from codellama_convert.storage.input_file import InputFile

_MAX_RECORD_BYTES = 1 << 20  # 70B has 200 kB


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a record says of Meta's files.

    Attributes:
        original: How they were saved.
        files: Size and CRC-32 of each rank.
        sha256: Of the record.
    """

    original: Original
    files: tuple[tuple[int, str], ...]
    sha256: str

    def is_asked_for(self, options: ReverseOptions) -> bool:
        """Report whether nothing else is asked for: other ranks, another layout, no frequencies."""
        original = self.original
        return (
            options.n_ranks in (None, len(original.roots))
            and options.torch_layout in (None, original.torch_layout)
            and (options.rope_freqs or not original.others)
        )

    def notes_on(self, files: Sequence[RankPlan], crcs: Mapping[str, int]) -> Iterator[str]:
        """Say whether the ranks that were written are the files that were converted.

        Args:
            files: The ranks.
            crcs: CRC-32 of each by name.

        Yields:
            One note.
        """
        others = [
            file.name
            for file, (n_bytes, crc32) in zip(files, self.files, strict=True)
            if (file.n_bytes, f"{crcs[file.name]:08x}") != (n_bytes, crc32)
        ]
        if others:
            yield (
                f"{others[0]} is laid out as the file that was converted, but has other bytes: the "
                f"weights, or {RECORD_NAME}, changed since"
            )
        else:
            yield "every rank has the size and the CRC-32 of the file that was converted"


def read_recorded(folder: Path, config: ModelConfig) -> Recorded | None:
    """Read how Meta's files were saved that a folder was converted from.

    Args:
        folder: The Hugging Face folder.
        config: The model that it holds.

    Returns:
        What its record says; None where it does not say it, as of ranks that would not come back.

    Raises:
        ValueError: If it was changed, or is of another model.
        ConvertError: If it, or the params.json in it, cannot be read.
    """
    path = folder / RECORD_NAME
    with InputFile(path, error=ConfigError) as file:
        raw = file.read_whole(_MAX_RECORD_BYTES)
    content = parse_object(raw)
    _require_ours(content.get("converter"))
    crc32 = f"{zlib.crc32(json_bytes({**content, 'crc32': '0' * 8})):08x}"
    if content.get("crc32") != crc32 or json_bytes(content) != raw:
        raise ValueError("it was changed after it was written")
    if "original" not in content:
        return None
    original = parse_original(content["original"])
    params, _ = parse_params(original.params.encode(), path)
    said = build_config(
        params,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        path=path,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    if said != config:
        raise ValueError("it holds a params.json of another model")
    files = _rank_sums(content.get("source"), len(original.roots))
    return Recorded(original, files, hashlib.sha256(raw).hexdigest())


def _require_ours(converter: object) -> None:
    name = converter.get("name") if isinstance(converter, dict) else None
    if name != "codellama-convert":
        raise ValueError("another program wrote it")


def _rank_sums(source: Any, n_ranks: int) -> tuple[tuple[int, str], ...]:
    names = [rank_name(number) for number in range(n_ranks)]
    if not isinstance(source, dict) or sorted(source) != names:
        raise ValueError("it does not list the ranks that it was made of")
    sums = []
    for name in names:
        match source[name]:
            case {"size": int(n_bytes), "crc32": str(crc32)}:
                sums.append((n_bytes, crc32))
            case _:
                raise ValueError("it does not list the ranks that it was made of")
    return tuple(sums)
