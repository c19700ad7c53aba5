"""Own the order in which a finished model comes into its place, and an older one goes.

What loaders begin with goes first and comes last, so that the folder never holds something that
loads and is not whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from codellama_convert.errors import OutputError
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.side import TargetSide
from codellama_convert.staging.crash_points import step
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.held_folder import HeldFolder


def is_replaced(name: str, side: TargetSide) -> bool:
    """Return whether a file or folder of this name is an older model's, and goes with it."""
    return name == RECORD_NAME or side.is_saved(name)


def entrances(names: Iterable[str], side: TargetSide) -> list[str]:
    """List what loaders begin with, in order."""
    return sorted(filter(side.is_entrance, names))


def publish(
    staging: HeldFolder, folder: HeldFolder, names: Collection[str], side: TargetSide
) -> None:
    """Move staged files into place.

    Args:
        staging: Where they stand.
        folder: Where they go.
        names: All of them.
        side: Who loads from the folder.

    Raises:
        OutputError: If one is lost or cannot be moved; nothing that loads is in the folder then.
    """
    lost = sorted(set(names) - staging.names())
    if lost:
        raise OutputError(
            f"{lost[0]!r} is gone from it", path=staging.path, hint="run the same command again"
        )
    for name in names:
        _refuse_strangers(staging, name)
    last = entrances(names, side)
    _remove_old_model(folder, side)
    for name in sorted(set(names).difference(last)):
        _move(staging, name, folder)
        step("file moved")
    folder.sync()
    for name in last:
        _move(staging, name, folder)
    folder.sync()
    step("published")


def unpublish(
    staging: HeldFolder, folder: HeldFolder, names: Collection[str], side: TargetSide
) -> None:
    """Move published files back, what loaders begin with first.

    Args:
        staging: Where they stood.
        folder: Where they are.
        names: Those that are ours and are there.
        side: Who loads from the folder.

    Raises:
        OutputError: If one cannot be moved; the rest can be moved later.
    """
    first = entrances(folder.names(), side)
    for name in first:
        if name in names:
            rename(folder, name, staging)
            step("file moved back")
        else:
            _remove(folder, name)  # one that is not ours would lead to what goes now
    folder.sync()
    for name in sorted(set(names).difference(first)):
        rename(folder, name, staging)
        step("file moved back")
    staging.sync()
    folder.sync()
    step("unpublished")


def _remove_old_model(folder: HeldFolder, side: TargetSide) -> None:
    """Remove an older model, first what loaders begin with."""
    for name in entrances(folder.names(), side):
        _remove(folder, name)
    folder.sync()
    step("old index removed")
    for name in sorted(name for name in folder.names() if is_replaced(name, side)):
        _remove(folder, name)
        step("old file removed")
    folder.sync()


def _remove(folder: HeldFolder, name: str) -> None:
    try:
        folder.remove(name)
    except OSError as problem:
        raise OutputError(
            f"cannot remove a file of the old model: {first_line(problem)}", path=folder.path / name
        ) from problem


def _move(staging: HeldFolder, name: str, folder: HeldFolder) -> None:
    """Move one of our files, and check that what arrived is that file."""
    _refuse_strangers(staging, name)
    rename(staging, name, folder)
    try:
        _refuse_strangers(folder, name)
    except OutputError:
        _remove(folder, name)
        raise


def _refuse_strangers(folder: HeldFolder, name: str) -> None:
    try:
        folder.refuse_strangers(name)
    except OSError as problem:
        raise OutputError(
            f"is not the file that was written: {first_line(problem)}",
            path=folder.path / name,
            hint="run the same command again",
        ) from problem


def rename(source: HeldFolder, name: str, target: HeldFolder, new_name: str | None = None) -> None:
    """Move a file or rename it; what has the new name is replaced, a link there not followed.

    Args:
        source: The folder that it is in.
        name: Its name.
        target: The folder that it goes to.
        new_name: Its name there, if it is another one.

    Raises:
        OutputError: If the system says so.
    """
    there = new_name or name
    try:
        source.rename(name, target, there)
    except OSError as problem:
        raise OutputError(
            f"cannot rename: {first_line(problem)}", path=target.path / there
        ) from problem
