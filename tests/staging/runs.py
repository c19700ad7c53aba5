"""Conversions into a folder, whole and interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import Interrupted
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.storage.watch import Watch
from tests.outputs import SHARD_BYTES, STAGING, StopAfter

OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1, tile_bytes=8192)
OVER = RunOptions(overwrite=True)


def convert(converted: Path, target: Path, how: RunOptions | None = None) -> None:
    run(plan_conversion(converted / "in", OPTIONS), target, how)


def interrupt(
    converted: Path, target: Path, how: RunOptions | None = None, looks: int = 30
) -> None:
    """Leave some whole files staged."""
    with pytest.raises(Interrupted):
        run(
            plan_conversion(converted / "in", OPTIONS),
            target,
            how,
            watch=Watch(stop=StopAfter(looks)),
        )
    assert list((target / STAGING).glob("model-*.safetensors"))


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """Read a tree: links as where they lead, folders as None."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def flip(journal: Path, key: str) -> None:
    """Change a digit of the first number behind a key."""
    text = bytearray(journal.read_bytes())
    at = text.index(b'"%s":{' % key.encode())
    at = text.index(b":", text.index(b":", at) + 1) + 1
    while not chr(text[at]).isdigit():
        at += 1
    text[at] = ord("1") if text[at] != ord("1") else ord("2")
    journal.write_bytes(text)
