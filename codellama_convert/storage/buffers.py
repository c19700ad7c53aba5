"""Own the memory that files are read into and written from: whole pages, large ones where there are."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil

# On most processors; a buffer, with its slack, wastes nothing where it is a multiple of it.
LARGE_PAGE_BYTES = 2 << 20
_MADV_WIPEONFORK = 18  # Linux's number; the module mmap has no name for it


def aligned_buffer(n_bytes: int) -> memoryview:
    """Allocate page-aligned memory for direct I/O.

    Args:
        n_bytes: Wanted size; `SLACK_BYTES` are added.

    Returns:
        Writable bytes, zeroed; freed with the last reference.
    """
    return _new_memory(_with_slack(n_bytes))


def buffer_pairs(
    read_bytes: int, write_bytes: int, n_pairs: int
) -> list[tuple[memoryview, memoryview]]:
    """Allocate the buffers of several workers in one piece: more of it can be in large pages.

    Args:
        read_bytes: Wanted size of the first of each pair, as for `aligned_buffer`.
        write_bytes: That of the second.
        n_pairs: How many, at least one.

    Returns:
        Pairs of what `aligned_buffer` returns.
    """
    first_bytes = _with_slack(read_bytes)
    pair_bytes = first_bytes + _with_slack(write_bytes)
    memory = _new_memory(n_pairs * pair_bytes)
    pairs = (memory[at : at + pair_bytes] for at in range(0, len(memory), pair_bytes))
    return [(pair[:first_bytes], pair[first_bytes:]) for pair in pairs]


def _with_slack(n_bytes: int) -> int:
    return block_ceil(n_bytes) + SLACK_BYTES


def _new_memory(n_bytes: int) -> memoryview:
    """Map zeroed memory; of large pages, direct I/O has far fewer to look up."""
    if sys.platform == "linux":
        # The last one too where it is nearly full; else it would take far more than was asked for.
        n_large = (n_bytes + LARGE_PAGE_BYTES // 16) // LARGE_PAGE_BYTES
        # Since 6.13, Linux begins a mapping at a large page only if its length is a multiple of one.
        rest = -n_bytes % LARGE_PAGE_BYTES if n_large else 0
        memory = mmap.mmap(-1, n_bytes + rest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if n_large:
            with suppress(OSError):  # a kernel may have none
                memory.madvise(mmap.MADV_HUGEPAGE, 0, n_large * LARGE_PAGE_BYTES)
        # A fork during a direct read could leave the bytes to the child, so it gets zeros. Not
        # MADV_DONTFORK, which leaves it a hole: what it maps there goes when it frees our object.
        # Source: open(2), NOTES; madvise(2).
        with suppress(OSError):  # before Linux 4.14
            memory.madvise(_MADV_WIPEONFORK)
    else:
        memory = mmap.mmap(-1, n_bytes)
    return memoryview(memory)[:n_bytes]
