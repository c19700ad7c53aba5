"""Own the attacks of a neighbour: he may write where the output folder lies, and strikes at a step.

Whatever he does, the run ends with every byte of the model right, or in one line; nothing of his is
published, nothing outside the output folder changes, and nothing hangs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from codellama_convert.convert.run import RunOptions
from codellama_convert.errors import ConvertError
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.staging import crash_points as faults
from codellama_convert.storage.held_folder import HeldFolder
from tests.faults.directions import FORWARD, Direction
from tests.fuzzers.running import time_limit
from tests.outputs import LOCK, STAGING, TOKEN, content, loads

NOBODY = 65534
SECONDS = 30
EVIL = b"evil" * 20_000


def why_not() -> str | None:
    """Tell why nobody can be another user here; None where he can."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return "only root can act as another user"
    return None


def as_nobody(act: Callable[[], object]) -> None:
    """Do something as another user; what he may not do, he does not."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with suppress(OSError):
                act()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@dataclass(frozen=True)
class Place:
    """Where he strikes.

    Attributes:
        target: The output folder.
        outside: A folder of the victim's that is none of his business.
        his: A folder of his own beside the output folder.
    """

    target: Path
    outside: Path
    his: Path

    @property
    def staging(self) -> Path:
        return self.target / STAGING


def _parts(place: Place) -> list[Path]:
    return sorted(place.staging.glob("*.part"))


def _sealed(place: Place) -> list[Path]:
    """What stands under its final name: weights and small files."""
    patterns = ("model-*.safetensors", "consolidated.*.pth", "*.json")
    return sorted(path for pattern in patterns for path in place.staging.glob(pattern))


def _journal(place: Place) -> list[Path]:
    return [place.staging / "journal.jsonl"]


def _token(place: Place) -> list[Path]:
    return [place.staging / TOKEN]


def _the_folder(place: Place) -> list[Path]:
    return [place.staging]


_FOUND: dict[str, Callable[[Place], list[Path]]] = {
    "staging": _the_folder, "journal": _journal, "part": _parts, "sealed": _sealed, "token": _token,
}  # fmt: skip


def _swap(what: str, put: Callable[[Place, Path], None]) -> Callable[[Place], None]:
    def strike(place: Place) -> None:
        for number, path in enumerate(_FOUND[what](place)):
            if os.path.lexists(path):
                path.rename(place.his / f"{what}{number}")
                put(place, path)

    return strike


def _link(place: Place, path: Path) -> None:
    path.symlink_to(place.outside if path == place.staging else place.outside / "canary")


def _hard_link(place: Place, path: Path) -> None:
    os.link(place.outside / "canary", path)


def _fifo(place: Place, path: Path) -> None:
    del place
    os.mkfifo(path)


def _file_of_his(place: Place, path: Path) -> None:
    """As large as the one that it replaces; root gives it to nobody where he could not."""
    taken = max(place.his.iterdir(), key=lambda one: one.lstat().st_ctime_ns)
    path.write_bytes(EVIL[: taken.stat().st_size])
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)


def _folder_of_his(place: Place, path: Path) -> None:
    """Everything is there, under the right names."""
    taken = max(place.his.iterdir(), key=lambda one: one.lstat().st_ctime_ns)
    path.mkdir(mode=0o777)
    with suppress(OSError):  # he may not look into ours
        for one in taken.iterdir():
            (path / one.name).write_bytes(EVIL[: one.stat().st_size])
    weights = ("model-00001-of-00002.safetensors", "consolidated.00.pth")
    for name in ("config.json", "params.json", *weights, "journal.jsonl"):
        (path / name).write_bytes(EVIL[:100])


# What he puts in whose place. As another user he does the first alone: the staging folder is closed
# to him. The others are done by the victim's own hand, as where a file system knows no permissions.
OF_A_NEIGHBOUR = {
    "staging for a link": _swap("staging", _link),
    "staging for a FIFO": _swap("staging", _fifo),
    "staging for a folder": _swap("staging", _folder_of_his),
    "journal for a link": _swap("journal", _link),
    "part for a hard link": _swap("part", _hard_link),
}
_PUT = {"link": _link, "hard link": _hard_link, "FIFO": _fifo, "file": _file_of_his}
OF_ANYBODY = {
    f"{what} for a {how}": _swap(what, put)
    for what in ("journal", "part", "sealed")
    for how, put in _PUT.items()
}
# What only a run with workers has.
OF_ANYBODY_BY_WORKERS = {f"token for a {how}": _swap("token", put) for how, put in _PUT.items()}


@contextmanager
def planted_belief() -> Iterator[None]:
    """Plant a mistake: whatever lies in the staging folder is taken for ours."""
    with (
        mock.patch.object(HeldFolder, "_refuse_strangers", return_value=None),
        mock.patch("codellama_convert.storage.held_folder.flags_of", return_value=0),
    ):
        yield


class NeighbourBench:
    """A source, what becomes of it, and a folder in which a neighbour may write."""

    def __init__(self, folder: Path, direction: Direction = FORWARD) -> None:
        """Make them."""
        folder.mkdir(exist_ok=True)
        self.folder, self._direction = folder, direction
        direction.save(folder / "in", 3)
        direction.run(folder / "in", folder / "whole")
        self.expected = content(folder / "whole")
        assert self.expected.keys() >= set(direction.weights)
        self.steps: list[str] = []
        faults.hook = self.steps.append
        try:
            direction.run(folder / "in", folder / "counted")
        finally:
            faults.hook = None
        for path in (folder, *folder.parents):  # pytest's folders are closed to others
            if path.stat().st_uid == os.geteuid() and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o111)

    def job(self) -> Job | ReverseJob:
        """Prepare the conversion of the source."""
        return self._direction.job(self.folder / "in")

    def _place(self) -> Place:
        place = Place(self.folder / "group" / "out", self.folder / "outside", self.folder / "his")
        place.target.mkdir(parents=True)
        place.target.chmod(0o777)
        place.outside.mkdir()
        (place.outside / "canary").write_bytes(b"mine")
        place.his.mkdir()
        place.his.chmod(0o777)
        return place

    def problems(self, strike: Callable[[Place], None], at: int, *, as_other: bool) -> list[str]:
        """Let him strike at a step, and list what is not as promised."""
        place = self._place()
        try:
            return [f"at {self.steps[at]!r} ({at}): {found}" for found in
                    self._problems(place, strike, at, as_other=as_other)]  # fmt: skip
        finally:
            for path in (place.target.parent, place.outside, place.his):
                shutil.rmtree(path)

    def _problems(
        self, place: Place, strike: Callable[[Place], None], at: int, *, as_other: bool
    ) -> Iterator[str]:
        seen = 0

        def hook(name: str) -> None:
            nonlocal seen
            if seen == at and as_other:
                as_nobody(lambda: strike(place))
            elif seen == at:
                with suppress(OSError):
                    strike(place)
            seen += 1

        faults.hook = hook
        try:
            yield from self._ended(place, RunOptions())
        finally:
            faults.hook = None
        if (place.outside / "canary").read_bytes() != b"mine" or len(
            list(place.outside.iterdir())
        ) > 1:
            yield "something outside was changed"
        if place.staging.is_dir() and not place.staging.is_symlink():
            shutil.rmtree(place.staging)
        elif os.path.lexists(place.staging):
            place.staging.unlink()
        yield from self._ended(place, RunOptions(overwrite=True), must_finish=True)

    def _ended(self, place: Place, how: RunOptions, *, must_finish: bool = False) -> Iterator[str]:
        try:
            with time_limit(SECONDS):
                self._direction.run(self.folder / "in", place.target, how)
        except ConvertError as problem:
            if "\n" in str(problem) or must_finish:
                yield f"ended with {problem}"
            if loads(place.target):
                yield f"something loads, though it ended with {problem}"
            return
        except Exception as problem:  # noqa: BLE001 - any other is what is looked for
            yield f"crash: {type(problem).__name__}: {problem}"
            return
        found = {name: raw for name, raw in content(place.target).items() if name != LOCK}
        if found != self.expected:
            yield f"other bytes were published: {sorted(found)}"
        if any(path.is_symlink() for path in place.target.iterdir() if path.name in self.expected):
            yield "a link was published"
