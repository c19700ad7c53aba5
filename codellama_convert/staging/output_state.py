"""Own the look at where an output would go, before anything is done; it touches nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.staging.occupied import may_be_ours
from codellama_convert.staging.records import Journal, as_journaled
from codellama_convert.staging.resume import Wanted, to_resume
from codellama_convert.staging.space import Space, space_for
from codellama_convert.staging.staged import STAGING_NAME, look_at_staged
from codellama_convert.storage.folders import names_in, refuse_unwritable


@dataclass(frozen=True, slots=True)
class OutputState:
    """What stands where an output would go.

    Attributes:
        path: The folder.
        refusal: Why a conversion into it would be refused; None where it would not be.
        replaced: The names in it that a conversion with `overwrite` would remove or replace.
        space: What is still to be written, what an earlier run has left whole, and what is free.
    """

    path: Path
    refusal: str | None
    replaced: tuple[str, ...]
    space: Space


def look_at_output(folder: Path, wanted: Wanted) -> OutputState:
    """Look at an output folder as a conversion would.

    Args:
        folder: It need not exist.
        wanted: The conversion.

    Returns:
        What it would find.

    Raises:
        OutputError: If the free space cannot be looked up.
    """
    staged, moved, replaced, refusal = None, set[str](), list[str](), None
    fingerprint = as_journaled(wanted.fingerprint)
    wanted = replace(wanted, fingerprint=fingerprint)
    try:
        refuse_unwritable(folder)
        found = look_at_staged(folder, restart=wanted.restart)
        staged = to_resume(folder / STAGING_NAME, found, wanted)
        moved = _moved_by_size(folder, staged)
        if folder.exists():
            wanted.refuse_content(folder, moved, resumed=staged is not None)
            replaced = [
                name
                for name in sorted(names_in(folder) - moved)
                if may_be_ours(name, wanted.written, wanted.side)
            ]
    except OutputError as problem:
        refusal = str(problem)
    return OutputState(
        folder, refusal, tuple(replaced), space_for(folder, wanted.sizes, staged, moved)
    )


def _moved_by_size(folder: Path, staged: Journal | None) -> set[str]:
    """Find what an earlier run had begun to publish; its sums are not worth an hour here."""
    if staged is None or not staged.publishing:
        return set()
    away = set(staged.publishing).intersection(names_in(folder)) - names_in(folder / STAGING_NAME)
    return {
        name for name in away if (folder / name).lstat().st_size == staged.publishing[name].n_bytes
    }
