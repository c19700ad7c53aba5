"""Files are read at any position, past the page cache and through it."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from codellama_convert.errors import CheckpointError, ConfigError
from codellama_convert.storage.blocks import BLOCK_BYTES, IoMode, block_ceil, block_floor
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.input_file import InputFile
from tests.storage.content import CONTENT

# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "floor", "ceil"),
    [(0, 0, 0), (1, 0, 4096), (4095, 0, 4096), (4096, 4096, 4096), (4097, 4096, 8192)],
)
def test_block_boundaries(position: int, floor: int, ceil: int) -> None:
    assert (block_floor(position), block_ceil(position)) == (floor, ceil)


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 4097])
def test_a_buffer_has_room_for_a_phase_at_both_ends(n_bytes: int) -> None:
    buffer = aligned_buffer(n_bytes)
    assert len(buffer) >= block_ceil(n_bytes) + BLOCK_BYTES
    assert len(buffer) % BLOCK_BYTES == 0
    assert not any(buffer)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 511, 4095, 4096, 4097, 3 * 4096 + 17, len(CONTENT) - 1])
@pytest.mark.parametrize("n_bytes", [0, 1, 2, 513, 4096, 4097, 9000])
def test_a_window_holds_the_bytes_of_its_place(
    source: Path, io_mode: IoMode, offset: int, n_bytes: int
) -> None:
    n_bytes = min(n_bytes, len(CONTENT) - offset)
    buffer = aligned_buffer(n_bytes)
    with InputFile(source, io_mode=io_mode) as file:
        assert (
            bytes(file.read_window(offset, n_bytes, buffer)) == CONTENT[offset : offset + n_bytes]
        )
        assert file.read_exact(offset, n_bytes) == CONTENT[offset : offset + n_bytes]


def test_many_threads_read_one_file(source: Path, io_mode: IoMode) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng, buffer = random.Random(seed), aligned_buffer(9000)
        for _ in range(60):
            at = rng.randrange(len(CONTENT) - 9000)
            if bytes(file.read_window(at, 9000, buffer)) != CONTENT[at : at + 9000]:
                wrong.append(at)

    with InputFile(source, io_mode=io_mode) as file:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_file_that_ends_before_is_an_error_that_says_where(source: Path, io_mode: IoMode) -> None:
    buffer = aligned_buffer(4096)
    with InputFile(source, io_mode=io_mode) as file:
        assert len(file.read_window(len(CONTENT) - 4096, 4096, buffer)) == 4096
        with pytest.raises(CheckpointError, match=str(len(CONTENT))):
            file.read_window(len(CONTENT) - 4095, 4096, buffer)
        with pytest.raises(CheckpointError, match=str(len(CONTENT))):
            file.read_exact(len(CONTENT), 1)


def test_a_file_truncated_after_opening_is_an_error_and_no_signal(
    source: Path, io_mode: IoMode
) -> None:
    """A mapped file would end the process with SIGBUS here."""
    with InputFile(source, io_mode=io_mode) as file:
        os.truncate(source, 5000)
        with pytest.raises(CheckpointError, match="5000"):
            file.read_window(4096, 4096, aligned_buffer(4096))


def test_reading_leaves_no_descriptor_open(source: Path, io_mode: IoMode) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors are counted in /proc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        file = InputFile(source, io_mode=io_mode)
        file.close()
        file.close()
    with pytest.raises(CheckpointError):
        InputFile(source.parent, io_mode=io_mode)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_kind_of_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        InputFile(tmp_path / "params.json", error=ConfigError)
    with pytest.raises(CheckpointError, match="file name"):
        InputFile(tmp_path / "a\0b")


def test_two_names_of_one_file_have_one_inode(source: Path, tmp_path: Path) -> None:
    os.link(source, tmp_path / "twin")
    (tmp_path / "other").write_bytes(CONTENT)
    with (
        InputFile(source) as first,
        InputFile(tmp_path / "twin") as second,
        InputFile(tmp_path / "other") as other,
    ):
        assert first.inode == second.inode != other.inode


def cached_among(path: Path, offsets: Iterable[int]) -> list[int]:
    """Ask the kernel which pages of a file it holds; nothing is read for that."""
    size, page = path.stat().st_size, mmap.PAGESIZE
    held = (ctypes.c_ubyte * -(-size // page))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), held) == 0
        del first
    return [offset for offset in offsets if held[offset // page] & 1]


@pytest.mark.skipif(sys.platform != "linux", reason="mincore as Linux has it")
def test_what_is_read_ahead_comes_into_the_page_cache_and_nothing_else_does() -> None:
    """On a disk: the suite's own folder is in memory, where all is cached."""
    far = range(0, 64 << 20, 8 << 20)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder, "far")
        with path.open("wb") as file:
            for offset in far:
                file.seek(offset)
                file.write(os.urandom(8192))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_among(path, far):
            pytest.skip("nothing leaves the page cache here")
        with InputFile(path) as input_file:
            input_file.read_ahead((*far[1:], 1 << 40), 512)
        deadline = time.monotonic() + 30
        while len(cached_among(path, far)) < len(far) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert cached_among(path, far) == [*far[1:]]
