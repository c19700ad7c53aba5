"""Own the order in which a finished model comes into its place, and an older one goes.

What loaders begin with goes first and comes last, so that the folder never holds something that
loads and is not whole. Know nothing of how files are written.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.faults import step
from codellama_convert.files import first_line
from codellama_convert.folders import names_in, sync_folder
from codellama_convert.safetensors_io import INDEX_NAME, SINGLE_FILE_NAME

# What a conversion writes beside the weights; of an older model, these are removed.
_SMALL_FILES = frozenset(
    {
        "config.json", "conversion.json", "generation_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }
)  # fmt: skip
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# A loader begins with one of these: they are removed first and appear last.
_ENTRANCES = (INDEX_NAME, SINGLE_FILE_NAME)


def is_of_a_model(name: str) -> bool:
    """Tell whether a conversion writes a file of this name, and removes an older one."""
    return bool(name in _SMALL_FILES or name in _ENTRANCES or _SHARD_NAME.fullmatch(name))


def publish(staging: Path, folder: Path, names: Collection[str]) -> None:
    """Move staged files into place.

    Args:
        staging: Where they stand.
        folder: Where they go.
        names: All of them.

    Raises:
        OutputError: If one is lost or cannot be moved; nothing that loads is in the folder then.
    """
    lost = sorted(set(names) - names_in(staging))
    if lost:
        raise OutputError(
            f"{lost[0]!r} is gone from it", path=staging, hint="run the same command again"
        )
    entrances = set(names).intersection(_ENTRANCES)
    if entrances:
        _remove_old_model(folder)
    for name in sorted(set(names) - entrances):
        rename(staging / name, folder / name)
        step("file moved")
    sync_folder(folder)
    for name in sorted(entrances):
        rename(staging / name, folder / name)
    sync_folder(folder)
    step("published")


def unpublish(staging: Path, folder: Path, names: Collection[str]) -> None:
    """Move published files back, what loaders begin with first.

    Args:
        staging: Where they stood.
        folder: Where they are.
        names: Those that are ours and are there.

    Raises:
        OutputError: If one cannot be moved; the rest can be moved later.
    """
    entrances = set(names).intersection(_ENTRANCES)
    for name in _ENTRANCES:
        if name in entrances:
            rename(folder / name, staging / name)
            step("file moved back")
        else:
            _remove(folder / name)  # one that is not ours would lead to what goes now
    sync_folder(folder)
    for name in sorted(set(names) - entrances):
        rename(folder / name, staging / name)
        step("file moved back")
    sync_folder(staging)
    sync_folder(folder)
    step("unpublished")


def _remove_old_model(folder: Path) -> None:
    """Remove an older model, first what loaders begin with."""
    for name in _ENTRANCES:
        _remove(folder / name)
    sync_folder(folder)
    step("old index removed")
    for name in sorted(filter(is_of_a_model, names_in(folder))):
        _remove(folder / name)
        step("old file removed")
    sync_folder(folder)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        raise OutputError(
            f"cannot remove, of the old model: {first_line(problem)}", path=path
        ) from problem


def rename(source: Path, target: Path) -> None:
    """Give a file another name; what has it is replaced, and a link there is not followed.

    Raises:
        OutputError: If the system says so.
    """
    try:
        source.replace(target)
    except OSError as problem:
        raise OutputError(f"cannot rename: {first_line(problem)}", path=target) from problem
