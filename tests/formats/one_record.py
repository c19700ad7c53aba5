"""Ranks of one record, that tensors are views of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codellama_convert.formats.pth.reader import RankIndex, read_rank
from tests.faults.hostile.rank_bytes import Declared, RankFile
from tests.faults.hostile.zip_bytes import write_zip

N_ELEMENTS = 64
CONTENT = bytes(range(2 * N_ELEMENTS))
METAS = "; use the files that Meta released"
CONTIGUOUS = "; re-save it with .contiguous()"


def rank_file(*tensors: Declared, content: bytes = CONTENT) -> RankFile:
    return RankFile(list(tensors), {"data/0": content})


def declared(
    shape: tuple[int, ...], strides: tuple[int, ...], name: str = "t", **more: Any
) -> Declared:
    return Declared(name, "0", more.pop("n_elements", N_ELEMENTS), shape, strides, **more)


def write(path: Path, rank: RankFile, pickled: bytes | None = None) -> Path:
    path.write_bytes(write_zip(rank.members(pickled)))
    return path


def read(folder: Path, rank: RankFile, pickled: bytes | None = None) -> RankIndex:
    return read_rank(write(folder / "rank.pth", rank, pickled))
