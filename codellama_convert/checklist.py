"""Own Meta's checklist.chk: MD5 sums beside a download; know nothing of what the files hold.

CRC-32 guards a conversion against accidents on the way. The list is what tells a wrong download
that is whole in itself. Meta's own list was wrong for two 70B models (meta-llama/codellama issue
192), so a mismatch is a note unless the user wants it strict.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codellama_convert.digests import file_digest
from codellama_convert.errors import CheckpointError, shown
from codellama_convert.input_file import InputFile

ChecksumMode = Literal["off", "warn", "strict"]

LIST_NAMES = ("checklist.chk", "tokenizer_checklist.chk")
# As md5sum writes it: the sum, a space, a space or an asterisk, the name.
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](\S.*)")
_MAX_LIST_BYTES = 1 << 16
_LIST_HINT = "download it again, or move it away"


@dataclass(frozen=True, slots=True)
class ListedSum:
    """One line of a list.

    Attributes:
        md5: The sum that it expects.
        list_path: The list.
    """

    md5: str
    list_path: Path


def read_lists(folders: Sequence[Path]) -> tuple[dict[str, ListedSum], tuple[str, ...]]:
    """Read the lists that lie in some folders.

    Args:
        folders: The model's folder, and the one that holds its tokenizer.

    Returns:
        The lines by file name, the first folder's first; and notes on lists that cannot be read.
    """
    found: dict[str, ListedSum] = {}
    notes: list[str] = []
    for folder in dict.fromkeys(folders):
        for name in LIST_NAMES:
            path = folder / name
            if not os.path.lexists(path):  # a dangling link counts: a note says what it is
                continue
            try:
                lines = _lines(path)
            except CheckpointError as problem:
                notes.append(f"{name} was not used: {problem.message}")
                continue
            for listed, md5 in lines.items():
                found.setdefault(listed, ListedSum(md5, path))
    return found, tuple(notes)


def _lines(path: Path) -> dict[str, str]:
    """Read a list; give the sum of each file by its name."""
    with InputFile(path) as file:
        if file.n_bytes > _MAX_LIST_BYTES:
            raise CheckpointError("it is too large to be a list", path=path, hint=_LIST_HINT)
        text = file.read_exact(0, file.n_bytes).decode("utf-8-sig", "replace")
    sums: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError("it is not a list of MD5 sums", path=path, hint=_LIST_HINT)
        md5, name = match[1].lower(), re.split(r"[/\\]", match[2])[-1]
        if sums.setdefault(name, md5) != md5:
            raise CheckpointError(f"it has two sums of {shown(name)}", path=path, hint=_LIST_HINT)
    return sums


def absent_names(listed: Mapping[str, ListedSum], *, elsewhere: Collection[str]) -> tuple[str, ...]:
    """Name the files of the lists that do not lie beside them.

    Args:
        listed: From `read_lists`.
        elsewhere: Names that are not looked for.

    Returns:
        One text for each.
    """
    return tuple(
        f"{entry.list_path.name} names {shown(name)}, which is not there"
        for name, entry in listed.items()
        if name not in elsewhere and not os.path.lexists(entry.list_path.parent / name)
    )


def check_sums(
    listed: Mapping[str, ListedSum],
    paths: Sequence[Path],
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """Compare files with the list, several at once.

    Args:
        listed: From `read_lists`.
        paths: The files.
        workers: How many are read at once; MD5 needs each in order.
        progress: Called with the bytes that were read, from several threads.

    Returns:
        One text for each file that differs.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    wanted = [(path, listed[path.name]) for path in paths if path.name in listed]

    def check(one: tuple[Path, ListedSum]) -> str | None:
        path, entry = one
        md5 = file_digest(path, "md5", error=CheckpointError, progress=progress)
        if md5 == entry.md5:
            return None
        return (
            f"{path.name} does not match {entry.list_path.name} (MD5 {md5}, expected {entry.md5})"
        )

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return tuple(text for text in pool.map(check, wanted) if text is not None)
