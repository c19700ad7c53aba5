"""Rows of a safetensors file are read right, each byte once, and its sums are recorded."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.safetensors_reader import SafetensorsIndex, read_safetensors
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.watch import Watch
from tests.refusals import refused

# 300 rows of 40 and 77 of 129 in bfloat16, 129 in float32.
ROWS = {"embed": range(300), "gate": range(77), "norm": range(129)}
KEPT = {"embed": range(300), "norm": range(129)}
SHAPES = {"embed": (300, 40), "gate": (77, 129), "norm": (129,), "buffer": (5,)}
NAMES = ("embed", "gate", "norm")  # what is read; the last is left to `finish`
BUFFER_BYTES = 1 << 16


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    wide = {"norm": torch.float32, "buffer": torch.float32}
    return {n: torch.randn(s).to(wide.get(n, torch.bfloat16)) for n, s in SHAPES.items()}


@pytest.fixture
def index(tmp_path: Path, state: dict[str, torch.Tensor]) -> SafetensorsIndex:
    save_file(state, tmp_path / "model.safetensors")
    return read_safetensors(tmp_path / "model.safetensors")


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def read_all(reader: TensorReader, names: tuple[str, ...] = NAMES) -> dict[str, bytes]:
    """Read tensors in bands of 13 rows, all bands in random order."""
    buffer = aligned_buffer(BUFFER_BYTES)
    bands = [(name, row) for name in names for row in range(0, SHAPES[name][0], 13)]
    random.Random(3).shuffle(bands)
    found: dict[tuple[str, int], bytes] = {}
    for name, row in bands:
        n_rows = min(13, SHAPES[name][0] - row)
        rows, crc = reader.read_rows(name, row, n_rows, buffer)
        assert rows.shape == (n_rows, (*SHAPES[name], 1)[1])
        assert crc == zlib.crc32(rows.tobytes())
        found[name, row] = rows.tobytes()
    return {name: b"".join(found[one] for one in sorted(found) if one[0] == name) for name in names}


@pytest.mark.parametrize("io_mode", ["buffered", "auto"])
def test_rows_are_the_librarys_and_the_sums_are_those_of_the_file(index, state, io_mode: IoMode):
    buffer = aligned_buffer(BUFFER_BYTES)
    with TensorReader(index, NAMES, io_mode=io_mode) as reader:
        assert read_all(reader) == {name: raw(state[name]) for name in NAMES}
        sums = reader.take_sums()
        assert sums == {
            name: [(0, 0, len(raw(state[name])), zlib.crc32(raw(state[name])))] for name in NAMES
        }
        assert reader.take_sums() == {}
        reader.finish(buffer, Watch())
        assert reader.file_crc(buffer, Watch()) == zlib.crc32(index.path.read_bytes())


def sums_of(index: SafetensorsIndex, names: tuple[str, ...]) -> SourceSums:
    with TensorReader(index, NAMES) as reader:
        read_all(reader, names)
        return reader.take_sums()


def test_what_an_earlier_run_read_counts_towards_the_file(index):
    buffer = aligned_buffer(BUFFER_BYTES)
    kept = sums_of(index, ("embed", "norm"))
    with TensorReader(index, NAMES) as reader:
        assert reader.confirms(kept, KEPT, buffer, Watch())
        reader.keep(kept)
        read_all(reader, ("gate",))
        reader.finish(buffer, Watch())
        assert reader.file_crc(buffer, Watch()) == zlib.crc32(index.path.read_bytes())


def test_a_record_that_overlaps_what_is_read_is_refused_with_a_way_out(index):
    """It was a ValueError; the staged work goes, as no resume can do better."""
    kept = sums_of(index, ("embed", "norm"))
    with TensorReader(index, NAMES) as reader:
        reader.keep(kept)
        with pytest.raises(
            CheckpointError, match=r"recorded bytes .* bytes 0 to \d+ overlap"
        ) as found:
            reader.note(kept)
        assert not found.value.can_resume
    with TensorReader(index, NAMES) as reader:
        reader.note(kept)
        with pytest.raises(ValueError, match="overlap"):  # no record is to blame: a mistake of ours
            reader.note(kept)


def test_sums_of_other_tensors_or_of_other_bytes_are_not_confirmed(index):
    """The format keeps no sums: only the bytes themselves say whether they are the same."""
    buffer = aligned_buffer(BUFFER_BYTES)
    kept = sums_of(index, ("embed", "norm"))
    with TensorReader(index, NAMES) as reader:
        assert not reader.confirms(kept, {"embed": range(300)}, buffer, Watch())
        assert not reader.confirms(kept, ROWS, buffer, Watch())
    storage = index.storages["embed"]
    with index.path.open("r+b") as file:
        file.seek(storage.offset + storage.n_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    again = read_safetensors(index.path)
    with TensorReader(again, NAMES) as reader:
        assert not reader.confirms(kept, KEPT, buffer, Watch())


def test_a_file_that_changed_since_its_header_was_read_is_refused(index):
    TensorReader(index, NAMES).close()
    status = index.path.stat()
    os.utime(index.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with refused(CheckpointError, "model.safetensors", "changed while it was read"):
        TensorReader(index, NAMES)


def test_a_file_of_the_same_content_in_its_place_is_refused(index, tmp_path):
    status = index.path.stat()
    (tmp_path / "other").write_bytes(index.path.read_bytes())
    os.utime(tmp_path / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "other").replace(index.path)
    with refused(CheckpointError, "model.safetensors", "changed while it was read"):
        TensorReader(index, NAMES)


def test_bytes_at_odd_positions_are_read(tmp_path):
    """A header of any length is legal; its elements then lie at positions that are not theirs."""
    header = b'{"gate":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    header += b" " * (8 - len(header) % 8 + 3)
    (tmp_path / "odd.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(range(16))
    )
    index = read_safetensors(tmp_path / "odd.safetensors")
    assert index.storages["gate"].offset % 4 == 3
    for io_mode in ("buffered", "auto"):
        with TensorReader(index, ["gate"], io_mode=io_mode) as reader:
            rows, _ = reader.read_rows("gate", 1, 1, aligned_buffer(64))
            assert rows.tobytes() == bytes(range(8, 16))
