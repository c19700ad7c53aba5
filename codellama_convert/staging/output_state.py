"""Own the look at where an output would go, before anything is done; it touches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError
from codellama_convert.plan.side import TargetSide
from codellama_convert.staging.occupied import refuse_content
from codellama_convert.staging.records import Journal
from codellama_convert.staging.space import Space, space_for
from codellama_convert.staging.staged import STAGING_NAME, look_at_staged, refuse_other_work
from codellama_convert.storage.folders import names_in, refuse_unwritable


@dataclass(frozen=True, slots=True)
class OutputState:
    """What stands where an output would go.

    Attributes:
        path: The folder.
        refusal: Why a conversion into it would be refused; None where it would not be.
        space: What is still to be written, what an earlier run has left whole, and what is free.
    """

    path: Path
    refusal: str | None
    space: Space


def look_at_output(
    folder: Path, fingerprint: Mapping[str, Any], sizes: Mapping[str, int], side: TargetSide
) -> OutputState:
    """Look at an output folder as a conversion without `overwrite` and `restart` would.

    Args:
        folder: It need not exist.
        fingerprint: The inputs and options of the conversion.
        sizes: Bytes of each file that it may write, by name; 0 for one that it does not this time.
        side: Who loads from the folder.

    Returns:
        What it would find.

    Raises:
        OutputError: If the free space cannot be looked up.
    """
    staged, moved, refusal = None, set[str](), None
    try:
        refuse_unwritable(folder)
        staged = _staged_work(folder, fingerprint, sizes)
        moved = _moved_by_size(folder, staged)
        if folder.exists():
            resumed = staged is not None
            written = [name for name, n_bytes in sizes.items() if n_bytes]
            refuse_content(
                folder, written, side=side, overwrite=False, moved=moved, resumed=resumed
            )
    except OutputError as problem:
        refusal = str(problem)
    return OutputState(folder, refusal, space_for(folder, sizes, staged, moved))


def _staged_work(
    folder: Path, fingerprint: Mapping[str, Any], sizes: Mapping[str, int]
) -> Journal | None:
    found = look_at_staged(folder)
    if found is not None:
        refuse_other_work(folder / STAGING_NAME, found, json.loads(json.dumps(fingerprint)), sizes)
    return found


def _moved_by_size(folder: Path, staged: Journal | None) -> set[str]:
    """Find what an earlier run had begun to publish; its sums are not worth an hour here."""
    if staged is None or not staged.publishing:
        return set()
    away = set(staged.publishing).intersection(names_in(folder)) - names_in(folder / STAGING_NAME)
    return {
        name for name in away if (folder / name).lstat().st_size == staged.publishing[name].n_bytes
    }
