"""Own the rules of order: what must be on the disk before what, told from a log of system calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.faults.syscalls.strace import Call
from tests.outputs import ENTRANCES, LOCK, STAGING, TOKEN

_WRITES = ("write", "pwrite64", "ftruncate", "fallocate")
_RENAMES = ("rename", "renameat", "renameat2")
_UNLINKS = ("unlink", "unlinkat", "rmdir")
# strace writes the quotes of the journal's JSON with backslashes.
_SEALED = re.compile(r'\\"file\\":{\\"name\\":\\"(?P<name>[^\\]*)')
_RANK = r"consolidated\.\d\d\.pth"
_WEIGHTS = re.compile(rf"(model(-\d{{5}}-of-\d{{5}})?\.safetensors|{_RANK})\.[0-9a-f]{{8}}\.part")
_LAST_NUMBERS = re.compile(r", (?P<first>\d+), (?P<second>\d+)$")
_PUBLISH = '{\\"publish\\":'


class _Disk:
    """What a power cut would leave of the calls so far, and what is wrong with that."""

    def __init__(self, folder: Path, held: frozenset[str]) -> None:
        self.folder, self.staging = folder, folder / STAGING
        self.journal = self.staging / "journal.jsonl"
        self.complaints: list[str] = []
        self._unsaved_bytes: set[Path] = set()
        self._unsaved_names: set[Path] = set()
        self._with_header: set[Path] = set()
        self._sizes: dict[Path, int] = {}
        self._staged: set[str] = set()
        self._moved_back: set[Path] = set()
        self._old_entrances = {folder / name for name in held & ENTRANCES}
        self._is_committed = False
        self._is_open = False  # whether what loaders begin with was moved into place

    def _complain(self, condition: object, text: str) -> None:
        if condition:
            self.complaints.append(text)

    def _unsaved_in(self, folder: Path, *, but: frozenset[str] = frozenset()) -> list[str]:
        names = (path.name for path in self._unsaved_names if path.parent == folder)
        return sorted(name for name in names if name not in but)

    def _is_final(self, path: Path) -> bool:
        return path.parent == self.folder and path.name not in (LOCK, STAGING)

    def see(self, call: Call) -> None:
        """Take in one call that succeeded."""
        path = Path(call.paths[-1])
        if call.name == "openat" and "O_RDONLY" not in call.arguments:
            self._complain(self._is_final(path), f"{path.name} is opened for writing in its place")
            if "O_CREAT" in call.arguments and path.name != self.journal.name:
                self._unsaved_names.add(path)
        elif call.name in _WRITES:
            self._write(call, path)
        elif call.name in ("fsync", "fdatasync"):
            self._unsaved_bytes.discard(path)
            self._unsaved_names = {other for other in self._unsaved_names if other.parent != path}
            self._moved_back = {other for other in self._moved_back if other.parent != path}
        elif call.name in _RENAMES:
            self._rename(Path(call.paths[-2]), path)
        elif call.name in _UNLINKS:
            self._unlink(path)
        elif call.name in ("mkdir", "mkdirat"):
            self._unsaved_names.add(path)

    def _write(self, call: Call, path: Path) -> None:
        self._complain(self._is_final(path), f"{path.name} is written in its place")
        numbers = _LAST_NUMBERS.search(call.arguments)
        if numbers and _WEIGHTS.fullmatch(path.name):
            first, second = map(int, numbers.groups())
            if call.name == "fallocate":
                self._sizes[path] = first + second
            elif call.name == "pwrite64":
                self._write_weights(path, n_bytes=first, at=second)
        sealed = _SEALED.search(call.arguments)
        if path == self.journal and sealed is not None:
            name = sealed["name"]
            is_saved = name in self._staged and name not in self._unsaved_in(self.staging)
            self._complain(not is_saved, f"{name} is journaled too early")
        goes_on = path == self.journal or _WEIGHTS.fullmatch(path.name)
        unsaved_line = goes_on and self.journal in self._unsaved_bytes
        self._complain(unsaved_line, f"{path.name} is written on an unsaved journal")
        if path == self.journal and _PUBLISH in call.arguments:
            unsaved = self._unsaved_in(self.staging)
            self._complain(unsaved, f"publishing is journaled before {unsaved} were saved")
            self._is_committed = True
        self._unsaved_bytes.add(path)

    def _write_weights(self, path: Path, *, n_bytes: int, at: int) -> None:
        begun = sorted(p.name for p in {self.staging, self.journal} & self._unsaved_names)
        self._complain(begun, f"{path.name} is written before {begun} were saved")
        # A shard's header is at its front; a rank's directory at its end, and its first record's
        # header comes last.
        is_rank = re.match(_RANK, path.name) is not None
        is_directory = is_rank and at + n_bytes == self._sizes.get(path)
        if at == 0 or is_directory:
            begun_before = path in self._with_header
            too_early = path in self._unsaved_bytes and not begun_before
            self._complain(too_early, f"{path.name}: its header before its data")
            self._complain(
                begun_before and not is_rank, f"{path.name}: its header is written twice"
            )
            self._with_header.add(path)
        else:
            self._complain(path in self._with_header, f"{path.name}: data behind its header")

    def _rename(self, source: Path, target: Path) -> None:
        unsaved = (
            source in self._unsaved_bytes and target.name != TOKEN
        )  # of a run that is over then
        self._complain(unsaved, f"{source.name} is renamed unsaved")
        if _WEIGHTS.fullmatch(source.name):
            self._complain(source not in self._with_header, f"{source.name} has no header")
        if target.parent == self.folder:
            self._publish(target)
        elif source.parent != self.folder:
            self._staged.add(target.name)
        if target == self.journal:
            back = sorted(path.name for path in self._moved_back)
            self._complain(back, f"the journal is replaced before {back} were saved")
        self._unsaved_names.discard(source)
        self._unsaved_names.add(target)
        if source.parent == self.folder:
            self._unlink(source)
            self._moved_back |= {source, target}

    def _publish(self, target: Path) -> None:
        self._complain(not self._is_committed, f"{target.name} is moved before the journal says so")
        self._complain(self.journal in self._unsaved_bytes, "files are moved on an unsaved journal")
        self._complain(self.folder in self._unsaved_names, "the folder's own name is unsaved")
        self._refuse_old_entrances(target)
        self._complain(self._is_open, f"{target.name} is moved after what loaders begin with")
        if target.name in ENTRANCES:
            unsaved = self._unsaved_in(self.folder, but=frozenset({LOCK, STAGING}))
            self._complain(unsaved, f"{target.name} is moved before {unsaved} were saved")
            self._is_open = True

    def _unlink(self, path: Path) -> None:
        if path in self._old_entrances:
            self._old_entrances.discard(path)
            self._unsaved_names.add(path)
        elif self._is_final(path):
            self._refuse_old_entrances(path)
            self._unsaved_names.add(path)
        elif self.staging in (path, path.parent):
            unsaved = self._unsaved_in(self.folder, but=frozenset({LOCK, STAGING}))
            self._complain(self._is_open and unsaved, f"{path.name} is dropped before {unsaved}")
            self._unsaved_names.discard(path)

    def _refuse_old_entrances(self, path: Path) -> None:
        there = sorted(old.name for old in self._old_entrances)
        self._complain(there, f"{path.name} is replaced while {there} lead to the old model")
        unsaved = [name for name in self._unsaved_in(self.folder) if name in ENTRANCES]
        self._complain(unsaved, f"{path.name} is replaced while {unsaved} may come back")

    def end(self) -> list[str]:
        """Give every complaint, those about what is left at the end too."""
        unsaved = self._unsaved_in(self.folder, but=frozenset({LOCK, STAGING}))
        self._complain(unsaved, f"the end comes before {unsaved} were saved")
        self._complain(not self._is_open, "nothing was published")
        return self.complaints


def complaints(
    calls: Sequence[Call], folder: Path, *, held: frozenset[str] = frozenset()
) -> list[str]:
    """Tell what is wrong with the order of a conversion's calls.

    Args:
        calls: All of its thread's, in order.
        folder: The output folder.
        held: The names that it held before.

    Returns:
        One text a wrong order.
    """
    disk = _Disk(folder, held)
    for call in calls:
        if call.paths and not call.failed:
            disk.see(call)
    return disk.end()
