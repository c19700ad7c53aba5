"""Own Meta's checklist.chk: MD5 sums beside a download.

CRC-32 guards a conversion against accidents on the way. The list is what tells a wrong download
that is whole in itself. Meta's own list was wrong for two 70B models (meta-llama/codellama issue
192), so a mismatch is a note unless the user wants it strict.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.choices import ChecksumMode
from codellama_convert.errors import CheckpointError, shown
from codellama_convert.formats.sentencepiece import MAX_FILE_BYTES
from codellama_convert.meta.find import TOKENIZER_NAME, CheckpointFiles
from codellama_convert.storage.digests import file_digest, file_digests
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.threads import share_out
from codellama_convert.storage.watch import Watch

CHECKLIST_NAME = "checklist.chk"
LIST_NAMES = (CHECKLIST_NAME, "tokenizer_checklist.chk")
# As md5sum writes it: the sum, a space, a space or an asterisk, the name.
_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](\S.*)")
# Beside Llama 3's ranks on the hub lie lists of other names, such as Llama-3.1-8B-20240723.md5, in
# which the file's name comes first.
_DATED_SUFFIX = ".md5"
_NAME_FIRST = re.compile(r"(\S.*?)[ \t]+([0-9a-fA-F]{32})")
_MAX_LIST_BYTES = 1 << 16
_AGAIN = "download it again"


class ListedSums:
    """The lists beside a checkpoint, and its comparison with them."""

    def __init__(
        self,
        files: CheckpointFiles,
        mode: ChecksumMode,
        *,
        skip_tokenizer: bool = False,
        workers: int = 1,
    ) -> None:
        """Read the lists that lie in the model's folder and in its tokenizer's.

        Args:
            files: The checkpoint; without ranks, only its tokenizer is looked at.
            mode: "off" compares the small files only, "warn" the ranks too; "strict" the same, and
                whatever is wrong is an error.
            skip_tokenizer: Whether the tokenizer is left out.
            workers: How many files are read at once; MD5 needs each in order.
        """
        self._files, self._mode = files, mode
        self._workers = workers
        tokenizer = None if skip_tokenizer else files.tokenizer
        self._tokenizer = () if tokenizer is None else (tokenizer,)
        self._listed, self._notes = _read_lists(
            (files.folder, *(path.parent for path in self._tokenizer)),
            {path.name for path in files.all()},
        )

    def check_small_files(self) -> tuple[str, ...]:
        """Compare params.json and tokenizer.model, and look whether the lists cover the ranks.

        Returns:
            A note on each list that is not one, each file that is missing on either side, and each
            file that differs.

        Raises:
            CheckpointError: In strict mode, for whatever is wrong; or if a file cannot be read.
        """
        files = self._files
        params = (files.params,) if files.ranks else ()
        small = tuple(path for path in (*params, *self._tokenizer) if _may_be_small(path))
        notes = self._notes
        if files.ranks:
            notes += self._absent_names()
        paths = small if self._mode == "off" else (*small, *files.ranks)
        unlisted = [path.name for path in paths if path.name not in self._listed]
        if self._mode != "off" and unlisted:
            notes += (f"no checklist.chk names {', '.join(unlisted)}",)
        if self._mode == "strict" and notes:
            raise CheckpointError(
                "; ".join(notes),
                path=files.folder,
                hint="use --checksums warn, or download what is missing",
            )
        return notes + self._compare(small, Watch())

    def check_ranks(self, watch: Watch, executor: Executor | None = None) -> tuple[str, ...]:
        """Compare the ranks, which takes minutes; the results and errors of `check_small_files`.

        Args:
            watch: Whom the bytes that are read are reported to.
            executor: Whose workers read them; None reads on threads.
        """
        return self._compare(self._files.ranks, watch, executor)

    def _absent_names(self) -> tuple[str, ...]:
        """Name the files of the lists that do not lie beside them; a tokenizer may lie elsewhere."""
        return tuple(
            f"{entry.list_path.name} names {shown(name)}, which is not there"
            for name, entry in self._listed.items()
            if name != TOKENIZER_NAME
            and entry.list_path.name in LIST_NAMES
            and not os.path.lexists(entry.list_path.parent / name)
        )

    def _compare(
        self, paths: Sequence[Path], watch: Watch, executor: Executor | None = None
    ) -> tuple[str, ...]:
        listed = [path for path in paths if path.name in self._listed]
        found = zip(listed, self._md5s(listed, watch, executor), strict=True)
        wrong = [
            f"{path.name} does not match {entry.list_path.name} (MD5 {md5}, expected {entry.md5})"
            for path, md5 in found
            for entry in (self._listed[path.name],)
            if md5 != entry.md5
        ]
        if wrong and self._mode == "strict":
            raise CheckpointError(wrong[0], path=self._files.folder, hint=_AGAIN)
        return tuple(f"{text}: download it again if the result is in doubt" for text in wrong)

    def _md5s(
        self, paths: Sequence[Path], watch: Watch, executor: Executor | None
    ) -> Sequence[str]:
        if executor is not None and paths:
            folder, names = paths[0].parent, [path.name for path in paths]
            digests = file_digests(
                folder, names, "md5", error=CheckpointError, watch=watch, executor=executor
            )
            return [*digests.values()]

        def md5_of(path: Path, _: None, watch: Watch) -> str:
            return file_digest(path, "md5", error=CheckpointError, watch=watch)

        return share_out(paths, [None] * self._workers, md5_of, watch)


@dataclass(frozen=True, slots=True)
class _ListedSum:
    """One line of a list: the sum that it expects, and the list."""

    md5: str
    list_path: Path


def checklist(md5s: Mapping[str, str]) -> bytes:
    """Make a list of the MD5 sums of files, as Meta and md5sum write it.

    Args:
        md5s: The sums, by the files' names, in order.

    Returns:
        The list, of `checklist_bytes` bytes.
    """
    return b"".join(_line(md5, name) for name, md5 in md5s.items())


def checklist_bytes(names: Sequence[str]) -> int:
    """Report how large the list of some files is."""
    return sum(len(_line("0" * 32, name)) for name in names)


def _line(md5: str, name: str) -> bytes:
    return f"{md5}  {name}\n".encode()


def _may_be_small(path: Path) -> bool:
    """Return whether a file is small enough to be what it should be; else it is soon refused."""
    return os.path.isfile(path) and os.path.getsize(path) <= MAX_FILE_BYTES  # noqa: PTH113, PTH202


def _read_lists(
    folders: Sequence[Path], wanted: Collection[str]
) -> tuple[dict[str, _ListedSum], tuple[str, ...]]:
    """Read the lists in some folders: lines by file name, the first folder's first; and notes.

    A list of another name counts if it has a sum of a wanted file; else it is somebody else's.
    """
    found: dict[str, _ListedSum] = {}
    notes: list[str] = []
    for path in (folder / name for folder in dict.fromkeys(folders) for name in LIST_NAMES):
        if not os.path.lexists(path):  # a dangling link counts: a note says what it is
            continue
        try:
            lines = _lines(path)
        except CheckpointError as problem:
            what_to_do = f"; {problem.hint}" if problem.hint else ""
            notes.append(f"{path.name} was not used: {problem.message}{what_to_do}")
            continue
        for listed, md5 in lines.items():
            found.setdefault(listed, _ListedSum(md5, path))
    for path in (path for folder in dict.fromkeys(folders) for path in _dated_lists(folder)):
        try:
            lines = _lines(path)
        except CheckpointError:
            continue
        if not lines.keys().isdisjoint(wanted):
            for listed, md5 in lines.items():
                found.setdefault(listed, _ListedSum(md5, path))
    return found, tuple(notes)


def _dated_lists(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(_DATED_SUFFIX))
    except OSError:  # only a tokenizer is taken from there
        return []


def _lines(path: Path) -> dict[str, str]:
    """Read a list; give the sum of each file by its name."""
    with InputFile(path) as file:
        text = file.read_whole(_MAX_LIST_BYTES, hint=_AGAIN).decode("utf-8-sig", "replace")
    sums: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        usual, other = _LINE.fullmatch(line), _NAME_FIRST.fullmatch(line)
        if usual is not None:
            md5, listed = usual[1], usual[2]
        elif other is not None:
            listed, md5 = other[1], other[2]
        else:
            raise CheckpointError("it is not a list of MD5 sums", path=path, hint=_AGAIN)
        md5, name = md5.lower(), re.split(r"[/\\]", listed)[-1]
        if sums.setdefault(name, md5) != md5:
            raise CheckpointError(f"it has two sums of {shown(name)}", path=path, hint=_AGAIN)
    return sums
