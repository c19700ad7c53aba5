"""A place that this user may not write is refused in one line, before anything is made."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outputs import command, content, error_line, finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="users as Linux has them")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


# The user changes just before the output folder is first looked at: the interpreter, and what it
# imports on the way, may lie where only root may look.
AS_NOBODY = """
import os
import encodings.ascii, fcntl
from codellama_convert.convert import run as convert
from codellama_convert.verify import run as verify
from codellama_convert.__main__ import main
import fcntl
look = convert.refuse_inputs
def look_as_nobody(*arguments):
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    look(*arguments)
convert.refuse_inputs = look_as_nobody
main()
"""


def finish_as_nobody(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a user to whom permissions mean something."""
    return finish([sys.executable, "-c", AS_NOBODY, *arguments[3:]])


@pytest.mark.parametrize(
    ("mode", "below", "fact"),
    [
        (0o555, "out", "Permission denied"),  # a folder in which nothing may be made
        (0o000, "out", "Permission denied"),  # one that may not even be looked into
        (0o000, "below/out", "Permission denied"),
    ],
)
def test_a_place_that_may_not_be_written_is_one_line(
    converted: Path, open_folder: Path, mode: int, below: str, fact: str
) -> None:
    place = _place_for_all(converted, open_folder)
    place.chmod(mode)
    arguments = command(open_folder / "in", place / below)
    line = error_line(finish_as_nobody(arguments))
    assert line.startswith(f"Error: {place}")
    assert fact in line
    place.chmod(0o777)
    assert list(place.iterdir()) == []
    assert finish_as_nobody(arguments).returncode == 0
    assert content(place / below) == content(converted / "out")


def test_a_parent_that_may_be_written_and_not_read_is_enough(
    converted: Path, open_folder: Path
) -> None:
    """Its entries cannot be synced without reading it; that was an error."""
    place = _place_for_all(converted, open_folder)
    place.chmod(0o333)
    done = finish_as_nobody(command(open_folder / "in", place / "out"))
    assert done.returncode == 0, done.stderr
    place.chmod(0o777)
    assert content(place / "out") == content(converted / "out")


def _place_for_all(converted: Path, open_folder: Path) -> Path:
    """Copy the checkpoint to where nobody may read it; make a place beside it."""
    source, place = open_folder / "in", open_folder / "place"
    source.mkdir()
    for name, bytes_ in content(converted / "in").items():
        (source / name).write_bytes(bytes_)
    source.chmod(0o755)
    place.mkdir()
    return place
