"""Own the folder of an output: what lies in it, and the reading of its JSON files to the last byte.

It shares nothing with the code that writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from codellama_convert.errors import VerifyError
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.hugging_face.loader_names import is_taken_by_loaders
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile

MODEL_SUFFIX = ".safetensors"
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth")  # pytorch_model.bin and its like
CONFIG_NAMES = ("config.json", "generation_config.json")
TOKENIZER_NAMES = (
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
CONVERT_AGAIN = "convert it again"
SPELLED_OTHERWISE = "the values are right, the spelling is not"
# 70B's index has 60 kB, its conversion.json 160 kB. The caps keep a forged one, which may be a
# million empty lists, below some 30 MB.
MAX_LIST_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 1 << 16
_MAX_NAME_BYTES = 255  # of Linux's file systems


class Complain(Protocol):
    """Takes what is wrong, and the files that it is about: `Problems.add`."""

    def __call__(self, what: str, *, file: str | None = None, about: Collection[str] = ()) -> None:
        """Take one thing that is wrong."""


def is_plain_name(name: object) -> bool:
    """Return whether a value names a file in the folder itself, and cannot lead out of it.

    On Windows a backslash does, and a colon: "C:name" lies in another folder, "name:x" in a file.
    """
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    too_long = len(name.encode(errors="replace")) > _MAX_NAME_BYTES
    return not too_long and not any(c in name for c in "/\\:\0")


def complain_of_strays(
    folder: Path,
    expected: Collection[str],
    complain: Complain,
    is_taken: Callable[[str], bool] = is_taken_by_loaders,
) -> None:
    """Name what loaders may take beside, or instead of, the files of a conversion.

    Whatever else lies there is left alone: a licence, a model card, notes.

    Args:
        folder: The output.
        expected: The names that the conversion wrote.
        complain: Called for each other file that counts.
        is_taken: Whether loaders take a file of a name; by default those of Hugging Face's format.

    Raises:
        VerifyError: If the folder cannot be read.
    """
    for name in sorted(names_in(folder, error=VerifyError).difference(expected)):
        if is_taken(name):
            complain(
                f"{name} is in the folder but not part of the conversion; loaders may load it",
                about=[name],
            )


def read_small(path: Path, max_bytes: int = _MAX_CONFIG_BYTES) -> bytes:
    """Read a small file whole.

    Args:
        path: The file.
        max_bytes: The largest plausible size.

    Returns:
        Its bytes.

    Raises:
        VerifyError: If it cannot be read or is too large.
    """
    with InputFile(path, error=VerifyError) as file:
        return file.read_whole(max_bytes)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Read a JSON object strictly.

    Args:
        content: The file's bytes.
        path: Where they come from, for messages.

    Returns:
        The object.

    Raises:
        VerifyError: If it is not one.
    """
    try:
        return parse_object(content)
    except ValueError as problem:
        raise VerifyError(str(problem), path=path, hint=CONVERT_AGAIN) from problem


def json_file(path: Path, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a small JSON object.

    Args:
        path: The file.
        max_bytes: The largest plausible size.

    Returns:
        Its content.

    Raises:
        VerifyError: If it cannot be read, is too large or is not a JSON object.
    """
    return parse_json(read_small(path, max_bytes), path)


def sorted_json(content: Mapping[str, Any]) -> bytes:
    """Spell JSON as it stands in the small files: sorted keys, two spaces, a final line break."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode(errors="surrogatepass")


def first_other_byte(found: bytes, expected: Iterable[bytes]) -> str | None:
    """Describe where two spellings of the same values part.

    Args:
        found: What a file holds.
        expected: What it should hold, piece by piece.

    Returns:
        Such as "byte 0 is 0xef, expected 0x7b"; None where they are equal.
    """
    start = 0
    for piece in expected:
        there = found[start : start + len(piece)]
        if there != piece:
            return describe_other_byte(there, piece, start)
        start += len(piece)
    return None if start == len(found) else f"it has {len(found)} bytes, expected {start}"


def describe_other_byte(found: bytes, expected: bytes, start: int) -> str:
    """Describe the first byte of a piece that is not as expected; a short piece is the last.

    Args:
        found: What stands in the file.
        expected: What should stand there.
        start: Where the piece begins.
    """
    pairs = zip(found, expected, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return f"it ends after {start + len(found)} bytes"
    return f"byte {start + at} is 0x{found[at]:02x}, expected 0x{expected[at]:02x}"


def refuse_pickles(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder whose weights are pickled, as older ones of Hugging Face are.

    Args:
        folder: A folder that is not of one model in safetensors.
        names: What is in it.

    Raises:
        VerifyError: If it holds a pickle and no safetensors.
    """
    pickled = min((name for name in names if name.endswith(_PICKLED_SUFFIXES)), default=None)
    if pickled is not None and not any(name.endswith(MODEL_SUFFIX) for name in names):
        raise VerifyError(
            f"holds {pickled} and no {MODEL_SUFFIX} file; only safetensors are compared",
            path=folder,
            hint="if you trust it, load it with transformers and save_pretrained it elsewhere",
        )
