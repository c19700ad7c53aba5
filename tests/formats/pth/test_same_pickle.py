"""Ranks whose pickles are the same are each what their own file says, and take little memory."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import zlib
from pathlib import Path

from codellama_convert.formats.pth.reader import PickleCache, read_rank
from tests.faults.hostile.rank_bytes import Declared, RankFile
from tests.faults.hostile.zip_bytes import write_zip
from tests.formats.one_record import write


def test_ranks_of_one_pickle_hold_what_each_of_them_says(tmp_path: Path) -> None:
    """Only what differs is held of the second: it is the same as if it were read alone."""
    tensors = [Declared(f"t{n}", f"{n}", 64, (64,), (1,)) for n in range(3)]
    records = {f"data/{n}": bytes([n]) * 128 for n in range(3)}
    cache: PickleCache = {}
    first = read_rank(write(tmp_path / "a.pth", RankFile(tensors, records)), cache=cache)
    # Other bytes at other places, and a record without a sum, as torch can save them.
    moved = RankFile(tensors, {"data/9": b"before", **records, "data/1": bytes([9]) * 128})
    members = moved.members()
    (bare,) = (one for one in members if one.name == "archive/data/2")
    bare.local["crc"] = bare.central["crc"] = 0
    (tmp_path / "b.pth").write_bytes(write_zip(members))
    for _ in range(2):
        second, alone = read_rank(tmp_path / "b.pth", cache=cache), read_rank(tmp_path / "b.pth")
        assert (second == alone, alone == second, second == first) == (True, True, False)
        assert (first.has_sums, second.has_sums, alone.has_sums) == (True, False, False)
        assert [*second.storages] == [*alone.storages] == ["data/0", "data/1", "data/2"]
        crcs = [storage.crc for storage in second.storages.values()]
        assert crcs == [zlib.crc32(bytes(128)), zlib.crc32(bytes([9]) * 128), None]
        assert second.tensors["t1"].storage == second.storages["data/1"]
        assert ("t1" in second.tensors, "t9" in second.tensors) == (True, False)
        assert (len(second.tensors), len(second.storages)) == (3, 3)
        assert pickle.loads(pickle.dumps(second)) == second


def test_ranks_of_one_pickle_take_little_memory(tmp_path: Path) -> None:
    """405B in 16 ranks has 18,288 tensors: an object for each, and its storage, took 5 MB."""
    n_tensors = 1000
    tensors = [Declared(f"t{n}", f"{n}", 64, (64,), (1,)) for n in range(n_tensors)]
    rank = RankFile(tensors, {f"data/{n}": bytes(128) for n in range(n_tensors)})
    path, cache = write(tmp_path / "rank.pth", rank), PickleCache()
    first = read_rank(path, cache=cache)
    tracemalloc.start()
    try:
        others = [read_rank(path, cache=cache) for _ in range(10)]
        gc.collect()
        n_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert others[-1].tensors == first.tensors
    assert n_bytes < 30 * n_tensors * len(others)
