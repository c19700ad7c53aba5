"""Own the names that programs give to a download that has not come to its end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from codellama_convert.errors import CheckpointError

# aria2 keeps this beside a file of full size, whose holes read as zeros.
_ARIA2 = ".aria2"
_SUFFIXES = (
    _ARIA2,
    ".part",  # Firefox, and curl's users
    ".partial",
    ".crdownload",  # Chromium
    ".opdownload",  # Opera
    ".download",  # Safari
    ".incomplete",  # huggingface_hub
    ".filepart",  # WinSCP
    ".!qb",  # qBittorrent
    ".!ut",  # uTorrent
)


def unfinished_downloads(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of some names that only an unfinished download has."""
    return tuple(name for name in names if name.lower().endswith(_SUFFIXES))


def refuse_unfinished(paths: Iterable[Path]) -> None:
    """Refuse a file that aria2 is still filling: it has its full size, and zeros inside.

    Raises:
        CheckpointError: With the file that says so.
    """
    for path in paths:
        control = Path(f"{path}{_ARIA2}")  # the root has no name
        if os.path.lexists(control):
            raise CheckpointError(
                f"its download is unfinished: aria2 keeps {control.name} beside it until the end",
                path=path,
                hint=f"let aria2 finish it; if the file is whole, remove {control.name}",
            )
