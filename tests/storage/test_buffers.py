"""The memory that files are read into and written from."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from codellama_convert.storage.buffers import aligned_buffer, buffer_pairs

SMAPS, STATUS = Path("/proc/self/smaps"), Path("/proc/self/status")
LARGE_PAGES, ZEROS_FOR_CHILDREN = "hg", "wf"


def address_of(buffer: memoryview | mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def flags_of(buffer: memoryview | mmap.mmap) -> set[str]:
    """Look up what the kernel was told of the memory that a buffer lies in."""
    inside = False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(number, 16) for number in bounds.groups())
            inside = start <= address_of(buffer) < end
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("the buffer lies nowhere")


def resident_bytes() -> int:
    (kib,) = re.findall(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(kib) * 1024


def test_each_buffer_begins_at_a_page_and_has_space_for_whole_blocks_around_its_piece() -> None:
    pairs = buffer_pairs(5000, 100, 3)
    assert [(len(first), len(second)) for first, second in pairs] == [(16384, 12288)] * 3
    assert len(aligned_buffer(5000)) == 16384
    for buffer in (aligned_buffer(1), *(one for pair in pairs for one in pair)):
        assert address_of(buffer) % 4096 == 0


def test_no_two_buffers_share_a_byte() -> None:
    buffers = [one for pair in buffer_pairs(5000, 100, 3) for one in pair]
    starts = sorted((address_of(buffer), len(buffer)) for buffer in buffers)
    assert all(start + size <= after for (start, size), (after, _) in pairwise(starts))
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * len(buffer)
    assert [set(buffer) for buffer in buffers] == [{number} for number in range(6)]


@pytest.mark.skipif(sys.platform != "linux", reason="madvise as Linux has it")
def test_the_kernel_may_use_large_pages_and_no_child_shares_them() -> None:
    """Of 4 KiB pages, direct I/O looked up 768 for each tile.

    They are private, and a fork while one is read directly into would leave the bytes to the child.
    """
    first, second = buffer_pairs(3 << 20, 3 << 20, 2)[1]
    for buffer in (first, aligned_buffer(1)):
        assert ZEROS_FOR_CHILDREN in flags_of(buffer)
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert LARGE_PAGES in flags_of(first)
    assert ZEROS_FOR_CHILDREN in flags_of(second)
    plain = mmap.mmap(-1, 3 << 20)
    assert not {ZEROS_FOR_CHILDREN, LARGE_PAGES} & flags_of(plain)


def can_align() -> bool:
    """Whether the kernel begins memory of whole large pages at a large page: Linux does since 6.7."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return (
        sys.platform == "linux"
        and Path("/sys/kernel/mm/transparent_hugepage").exists()
        and release is not None
        and tuple(map(int, release.groups())) >= (6, 7)
    )


@pytest.mark.skipif(not can_align(), reason="this kernel puts memory anywhere")
@pytest.mark.parametrize("mib", [2, 3, 5])
def test_buffers_begin_at_a_large_page_whatever_their_size(mib: int) -> None:
    """3 MiB began anywhere, so a third of their pages or all were small: half as fast on a disk."""
    several = [aligned_buffer(mib << 20) for _ in range(4)]
    pairs = [buffer_pairs((mib << 20) - 8192, 8192, 3) for _ in range(4)]
    for buffer in (*several, *(first[0][0] for first in pairs)):
        assert address_of(buffer) % (2 << 20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="madvise as Linux has it")
def test_a_child_may_free_the_buffers_that_it_was_born_with() -> None:
    """It had a hole there, put its own buffers into it, and they went with the inherited ones."""
    inherited = buffer_pairs(3_000_000, 3_000_000, 2)
    inherited[0][0][:4] = b"mine"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = buffer_pairs(3_000_000, 3_000_000, 2)
            status = 2 if bytes(inherited[0][0][:4]) == b"mine" else 0
            inherited.clear()
            for pair in own:
                for buffer in pair:
                    buffer[:] = bytes(len(buffer))
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(inherited[0][0][:4]) == b"mine"


@pytest.mark.skipif(not can_align(), reason="this kernel puts memory anywhere")
@pytest.mark.parametrize("n_bytes", [2_072_000, 2_200_000, 4_190_000, 6_160_000, 10_444_800])
def test_a_buffer_takes_no_more_memory_than_it_has(n_bytes: int) -> None:
    """The last large page was taken whole: 4.1 MB for 2.1."""
    buffer = aligned_buffer(n_bytes)
    before = resident_bytes()
    for at in range(0, len(buffer), 4096):
        buffer[at] = 1
    assert resident_bytes() - before <= n_bytes + (2 << 20) // 16 + 100_000
