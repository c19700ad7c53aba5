"""Own the order in which a finished model comes into its place, and an older one goes.

What loaders begin with goes first and comes last, so that the folder never holds something that
loads and is not whole. Know nothing of how files are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.faults import step
from codellama_convert.files import first_line
from codellama_convert.folders import names_a_folder, names_in, sync_folder
from codellama_convert.loader_names import is_entrance, is_saved_by_libraries

_RECORD_NAME = "conversion.json"


def is_replaced(name: str) -> bool:
    """Tell whether a file or folder of this name is an older model's, and goes with it."""
    return name == _RECORD_NAME or is_saved_by_libraries(name)


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
    entrances = set(filter(is_entrance, names))
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
    for name in sorted(filter(is_entrance, names_in(folder))):
        if name in names:
            rename(folder / name, staging / name)
            step("file moved back")
        else:
            _remove(folder / name)  # one that is not ours would lead to what goes now
    sync_folder(folder)
    for name in sorted(name for name in names if not is_entrance(name)):
        rename(folder / name, staging / name)
        step("file moved back")
    sync_folder(staging)
    sync_folder(folder)
    step("unpublished")


def _remove_old_model(folder: Path) -> None:
    """Remove an older model, first what loaders begin with."""
    for name in sorted(filter(is_entrance, names_in(folder))):
        _remove(folder / name)
    sync_folder(folder)
    step("old index removed")
    for name in sorted(filter(is_replaced, names_in(folder))):
        _remove(folder / name)
        step("old file removed")
    sync_folder(folder)


def _remove(path: Path) -> None:
    try:
        if names_a_folder(path):
            shutil.rmtree(path)
        else:
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
