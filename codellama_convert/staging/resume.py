"""Own how a conversion takes up its output folder: what an earlier run left is resumed or dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError
from codellama_convert.plan.side import TargetSide
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.occupied import may_be_ours, refuse_content
from codellama_convert.staging.publish import unpublish
from codellama_convert.staging.records import Journal, write_journal
from codellama_convert.staging.space import refuse_small_disk, space_for
from codellama_convert.staging.staged import (
    STAGING_NAME,
    begin_staging,
    drop_all_but,
    drop_staging,
    find_moved,
    hold_staging,
    read_staged,
    refuse_other_work,
)
from codellama_convert.staging.task_journals import task_journals
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.watch import Watch


@dataclass(frozen=True, slots=True)
class Wanted:
    """The conversion that a folder is to receive.

    Attributes:
        fingerprint: Its inputs and options.
        sizes: Bytes of each file that it may write, 0 for one that it does not this time; no others
            are taken for its own.
        overwrite: Whether a model that the folder holds may be replaced.
        restart: Whether staged work is dropped.
        side: Who loads from the folder.
        watch: May stop the reading of files that an earlier run has left.
    """

    fingerprint: dict[str, Any]
    sizes: Mapping[str, int]
    overwrite: bool
    restart: bool
    side: TargetSide
    watch: Watch

    @property
    def written(self) -> list[str]:
        """The names of the files that it writes."""
        return [name for name, n_bytes in self.sizes.items() if n_bytes]

    def refuse_content(
        self, folder: Path, moved: Collection[str] = (), *, resumed: bool = False
    ) -> None:
        """Refuse a folder for what it holds; as `occupied.refuse_content`."""
        refuse_content(
            folder,
            self.written,
            side=self.side,
            overwrite=self.overwrite,
            moved=moved,
            resumed=resumed,
        )


def resume_or_begin(
    folder: HeldFolder, wanted: Wanted, to_close: ExitStack
) -> tuple[HeldFolder, Journal]:
    """Open the staging folder with what of its content is wanted, or a new one.

    Args:
        folder: The output folder, locked.
        wanted: The conversion.
        to_close: Closes the staging folder.

    Returns:
        The staging folder, and its journal.

    Raises:
        OSError: If the system says so.
        OutputError: If something is in the way, or the disk is too small.
    """
    held = hold_staging(folder)
    staged = None
    if held is not None:
        to_close.enter_context(held)
        held.keep_private()
        staged = read_staged(held, restart=wanted.restart)
    found = to_resume(folder.path / STAGING_NAME, staged, wanted)
    if held is not None and staged is None:
        with suppress(OSError):  # an empty one is the trace of a kill at the very end
            folder.remove_folder(STAGING_NAME)
            held = None
    _take_back(folder, held, staged, found, wanted)
    refuse_small_disk(folder.path, space_for(folder.path, wanted.sizes, found))
    if held is None or found is None:
        if held is not None:
            drop_staging(folder, held)
        held, journal = to_close.enter_context(begin_staging(folder)), Journal(wanted.fingerprint)
    else:
        journal = replace(found, publishing={})
        _drop_leftovers(held, journal)
    _save(folder, held, journal, is_new=found is None)
    return held, journal


def _drop_leftovers(held: HeldFolder, journal: Journal) -> None:
    """Drop all but what a journal says is whole; journals of tasks go when theirs is saved in it."""
    are_joined = bool(task_journals(held))
    if are_joined:
        write_journal(held, journal)
    drop_all_but(held, journal.sealed)
    if are_joined:
        step("task journals dropped")


def _save(folder: HeldFolder, held: HeldFolder, journal: Journal, *, is_new: bool) -> None:
    """Write a journal that can be relied on, whatever an earlier run did to it.

    A torn last line must not be followed by whole ones, nor a line whose fsync failed be believed.
    """
    try:
        write_journal(held, journal)
        held.sync()
        folder.sync()
    except BaseException:
        if is_new:
            with suppress(OutputError):
                drop_staging(folder, held)
        raise
    step("journal begun")


def to_resume(staging: Path, staged: Journal | None, wanted: Wanted) -> Journal | None:
    """Choose what of the staged work is wanted: this conversion's, unless it is to be dropped.

    Args:
        staging: The staging folder.
        staged: What its journal says; None where there is none.
        wanted: The conversion.

    Returns:
        The journal, if its work is resumed.

    Raises:
        OutputError: If it is another's, which is to be dropped only if that is asked for.
    """
    if staged is None or wanted.restart:
        return None
    if wanted.overwrite and staged.fingerprint != wanted.fingerprint:
        return None
    refuse_other_work(staging, staged, wanted.fingerprint, wanted.sizes)
    return staged


def _take_back(
    folder: HeldFolder,
    held: HeldFolder | None,
    staged: Journal | None,
    resumed: Journal | None,
    wanted: Wanted,
) -> None:
    """Make staged work again of what an earlier run had begun to publish.

    Where staged work is dropped, so is this; with `overwrite` it is replaced like any other.
    """
    moved: set[str] = set()
    if held is not None and staged is not None and (resumed is not None or not wanted.overwrite):
        sums = {
            name: one
            for name, one in staged.publishing.items()
            if may_be_ours(name, wanted.sizes, wanted.side)
        }
        moved = find_moved(held, folder, sums, wanted.watch)
        is_done = moved == set(staged.publishing)
        if is_done and staged.fingerprint != wanted.fingerprint:
            moved = set()  # another conversion came to its end: this is its model
    wanted.refuse_content(folder.path, moved, resumed=resumed is not None)
    if held is not None and moved:
        unpublish(held, folder, moved, wanted.side)
