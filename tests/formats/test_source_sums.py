"""What was read for a file is its own: the sums of files join in any order, and fit no other file."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import RankIndex, read_rank
from codellama_convert.formats.source_sums import (
    FOR_COLUMNS,
    FOR_COPIES,
    Ledgers,
    Passes,
    assign_passes,
    fits,
)
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.watch import Watch
from tests.faults.hostile.rank_bytes import Declared, RankFile
from tests.faults.hostile.zip_bytes import write_zip
from tests.meta.test_rank_reader import CONTENT, N_ELEMENTS, views, write_rank

N_BYTES = 2 * N_ELEMENTS


def read_files(index: RankIndex, files: list[list[str]], tile_rows: int = 3) -> list[SourceSums]:
    """Read the tensors of each file, and take and note the sums after it."""
    buffer = aligned_buffer(N_BYTES)
    taken = []
    with RankReader(index, list(index.tensors)) as reader:
        for names in files:
            for name in names:
                n_rows = index.tensors[name].shape[0]
                for row in range(0, n_rows, tile_rows):
                    reader.read_rows(name, row, min(tile_rows, n_rows - row), buffer)
            taken.append(reader.take_sums())
            reader.note(taken[-1])
    return taken


@settings(max_examples=100, deadline=None)
@given(drawn=views(), seed=st.integers(0, 99), tile_rows=st.integers(1, 12))
def test_the_sums_of_files_fit_them_alone_and_join_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Declared], seed: int, tile_rows: int
) -> None:
    index = write_rank(tmp_path_factory.mktemp("sums") / "rank.pth", drawn)
    rng = random.Random(seed)
    files: list[list[str]] = [[], []]
    for view in drawn:
        rng.choice(files).append(view.name)
    files = [names for names in files if names]
    rng.shuffle(files)
    taken = read_files(index, files, tile_rows)
    pass_of = assign_passes(index.tensors.values())
    for number, (names, sums) in enumerate(zip(files, taken, strict=True)):
        tensors = [(index.tensors[name], 2 * prod(index.tensors[name].shape)) for name in names]
        assert fits(sums, tensors, pass_of)
        assert not fits(sums, tensors[1:], pass_of)
        for other in taken[:number]:  # what a reader has read so far, for all files
            both = {"data/0": sorted([*sums["data/0"], *other["data/0"]])}
            assert not fits(both, tensors, pass_of)
    rng.shuffle(taken)
    buffer = aligned_buffer(N_BYTES)
    with RankReader(index, list(index.tensors)) as reader:
        for sums in taken:
            reader.keep(sums)
        reader.finish(buffer, Watch())
        assert reader.file_crc(buffer, Watch()) == zlib.crc32(index.path.read_bytes())


PAIR = [
    Declared("a", "0", N_ELEMENTS, (100,), (1,)),
    Declared("b", "0", N_ELEMENTS, (100,), (1,), 100),
    Declared("c", "0", N_ELEMENTS, (100,), (1,), 50),  # overlaps both
]
CRC = zlib.crc32(CONTENT[:200])


@pytest.mark.parametrize(
    ("pieces", "is_fitting"),
    [
        ([(0, 0, 200, CRC)], True),
        ([(0, 0, 100, 1), (0, 100, 200, 2)], True),
        ([], False),
        ([(0, 0, 199, 1)], False),
        ([(0, 1, 200, 1)], False),
        ([(0, 0, 90, 1), (0, 91, 200, 1)], False),
        ([(0, 0, 201, 1)], False),
        ([(0, 0, 200, 1), (0, 300, 301, 1)], False),
        ([(3, 0, 200, 1)], False),
        ([(0, 0, 200, 1), (3, 0, 200, 1)], False),
        ([(0, 0, 150, 1), (0, 100, 200, 1)], False),
        ([(0, 0, 200, 1), (0, 0, 200, 1)], False),
        ([(0, 200, 0, 1), (0, 0, 400, 1)], False),
    ],
)
def test_sums_fit_where_all_bytes_and_no_others_were_read_once(
    tmp_path: Path, pieces: list[tuple[int, int, int, int]], *, is_fitting: bool
) -> None:
    index = write_rank(tmp_path / "rank.pth", PAIR)
    pass_of = assign_passes(index.tensors.values())
    assert pass_of == {"a": 0, "b": 0, "c": 3}
    assert fits({"data/0": pieces}, [(index.tensors["a"], 200)], pass_of) == is_fitting
    assert not fits({"data/1": pieces}, [(index.tensors["a"], 200)], pass_of)
    assert not fits({"data/0": pieces}, [(index.tensors["b"], 200)], pass_of)


def test_sums_fit_a_tensor_whose_last_rows_are_left_out(tmp_path: Path) -> None:
    index = write_rank(tmp_path / "rank.pth", PAIR)
    pass_of = assign_passes(index.tensors.values())
    first_rows: SourceSums = {"data/0": [(0, 0, 120, 1)]}
    assert fits(first_rows, [(index.tensors["a"], 120)], pass_of)
    assert not fits(first_rows, [(index.tensors["a"], 122)], pass_of)
    assert not fits(first_rows, [(index.tensors["a"], 200)], pass_of)


def test_passes_follow_from_the_tensors_whatever_their_order(tmp_path: Path) -> None:
    twins = [Declared(name, "0", N_ELEMENTS, (100,), (1,)) for name in "dcba"]
    index = write_rank(tmp_path / "rank.pth", twins)
    tensors = list(index.tensors.values())
    assert assign_passes(tensors) == {"a": 0, "b": 3, "c": 6, "d": 9}
    assert assign_passes(tensors[::-1]) == {"a": 0, "b": 3, "c": 6, "d": 9}


def test_what_one_output_file_reads_for_itself_is_a_pass_with_what_all_share(
    tmp_path: Path,
) -> None:
    """Two read all of b, three all of c, and of a each a part: three passes, and all of them whole."""
    views = [("a", 0, 100), ("b", 100, 100), ("c", 200, N_ELEMENTS - 200)]
    drawn = [Declared(name, "0", N_ELEMENTS, (n,), (1,), first) for name, first, n in views]
    index = write_rank(tmp_path / "rank.pth", drawn, bytes(N_BYTES))
    pass_of = assign_passes(index.tensors.values(), {"b": FOR_COLUMNS, "c": FOR_COPIES})
    assert pass_of == {"a": 0, "b": 1, "c": 2}
    passes = Passes(index, pass_of)
    a = [(0, 0, 80, zlib.crc32(bytes(80))), (0, 80, 200, zlib.crc32(bytes(120)))]
    b = (1, 200, 400, zlib.crc32(bytes(200)))
    c = (2, 400, N_BYTES, zlib.crc32(bytes(N_BYTES - 400)))
    for sums in ([a[0], b, c], [a[1], b, c]):
        passes.add({"data/0": sums})
    passes.add({"data/0": [(*c[:3], c[3] ^ 1)]})
    crcs = [ledger.crc for ledger in passes.over("data/0")]
    assert crcs[:2] == [zlib.crc32(bytes(N_BYTES))] * 2
    assert crcs[2:] == [zlib.crc32(bytes(N_BYTES)) ^ 1]


def test_a_storage_is_checked_when_the_last_file_of_it_was_read(tmp_path: Path) -> None:
    """Before that file gets its name: what it is made of may be what is wrong."""
    halves = [
        Declared("a", "0", N_ELEMENTS, (350,), (1,)),
        Declared("b", "0", N_ELEMENTS, (350,), (1,), 350),
    ]
    path = tmp_path / "rank.pth"
    index = write_rank(path, halves)
    assert len(read_files(index, [["a"], ["b"]])) == 2
    raw = bytearray(path.read_bytes())
    raw[index.storages["data/0"].offset] ^= 1
    path.write_bytes(raw)
    index = read_rank(path)
    assert len(read_files(index, [["a"]])) == 1
    with pytest.raises(CheckpointError, match="CRC-32 mismatch"):
        read_files(index, [["a"], ["b"]])


def test_reading_a_byte_twice_in_a_pass_is_a_mistake_that_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rank.pth"
    path.write_bytes(write_zip(RankFile(PAIR, {"data/0": CONTENT}).members()))
    index = read_rank(path)
    with pytest.raises(ValueError, match="overlap"):
        read_files(index, [["a", "a"]])
    with pytest.raises(ValueError, match="overlap"):
        read_files(index, [["a"], ["a"]])


def write_many(path: Path, n_storages: int) -> RankIndex:
    """Write tensors of 2 elements, each in a storage of its own."""
    drawn = [Declared(f"t{n}", str(n), 2, (2,), (1,)) for n in range(n_storages)]
    contents = {f"data/{n}": n.to_bytes(4, "little") for n in range(n_storages)}
    path.write_bytes(write_zip(RankFile(drawn, contents).members()))
    return read_rank(path)


def test_storages_that_were_read_wholly_take_little_memory(tmp_path: Path) -> None:
    """405B in 16 ranks has 18,288: a ledger for each took 7 MB in the end."""
    n_storages = 2000
    index = write_many(tmp_path / "rank.pth", n_storages)
    buffer = aligned_buffer(4)
    with RankReader(index, list(index.tensors)) as reader:
        tracemalloc.start()
        try:
            for n in range(n_storages - 500):
                reader.note({f"data/{n}": [(0, 0, 4, zlib.crc32(n.to_bytes(4, "little")))]})
            reader.finish(buffer, Watch())  # which reads the others
            n_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert n_bytes < 60 * n_storages
        assert reader.file_crc(buffer, Watch()) == zlib.crc32(index.path.read_bytes())


def test_what_was_read_wholly_is_neither_forgotten_nor_read_again(tmp_path: Path) -> None:
    index = write_rank(tmp_path / "rank.pth", PAIR)
    first, last = (0, 0, 200, CRC), (0, 200, N_BYTES, zlib.crc32(CONTENT[200:]))
    twin = (3, 0, N_BYTES, 7)  # of another pass, with a sum that the storage does not have
    ledgers = Ledgers(index)
    for one in (first, last, twin):
        ledgers.add({"data/0": [one]})
    whole = zlib.crc32(CONTENT)
    assert ledgers.sums() == {"data/0": [(0, 0, N_BYTES, whole), twin]}
    assert (ledgers["data/0", 0].crc, ledgers["data/0", 3].crc) == (whole, 7)
    for number in (0, 3):
        assert list(ledgers["data/0", number].gaps()) == []
        for start in (0, 200, N_BYTES - 1):
            with pytest.raises(ValueError, match="overlap"):
                ledgers.add({"data/0": [(number, start, start + 1, 1)]})
            with pytest.raises(ValueError, match="overlap"):
                ledgers["data/0", number].add(start, b"a")
    assert ledgers["data/0", 6].crc is None  # a pass that has read nothing


def test_a_byte_that_is_read_again_after_the_last_is_refused(tmp_path: Path) -> None:
    """The ledger of a storage that is whole has gone, and what it knew has not."""
    index = write_rank(tmp_path / "rank.pth", PAIR)
    buffer = aligned_buffer(N_BYTES)
    with RankReader(index, list(index.tensors)) as reader:
        reader.note({"data/0": [(0, 0, N_BYTES, zlib.crc32(CONTENT))]})
        with pytest.raises(ValueError, match="overlap"):
            reader.note({"data/0": [(0, 0, 2, 1)]})
    whole = write_rank(tmp_path / "one.pth", [Declared("t", "0", N_ELEMENTS, (N_ELEMENTS,), (1,))])
    with RankReader(whole, ["t"]) as reader:
        reader.read_rows("t", 0, N_ELEMENTS, buffer)
        with pytest.raises(ValueError, match="overlap"):
            reader.read_rows("t", N_ELEMENTS - 1, 1, buffer)
        assert reader.take_sums() == {"data/0": [(0, 0, N_BYTES, zlib.crc32(CONTENT))]}
