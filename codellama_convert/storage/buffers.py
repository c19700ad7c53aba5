"""Own the memory that files are read into and written from: whole pages, large ones where there are."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil

# On most processors; a buffer, with its slack, wastes nothing where it is a multiple of it.
LARGE_PAGE_BYTES = 2 << 20


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
        # Linux (since 6.13) fills only memory of a whole number of them from its start; of what is
        # smaller than one, most would be wasted.
        rest = -n_bytes % LARGE_PAGE_BYTES if n_bytes >= LARGE_PAGE_BYTES else 0
        memory = mmap.mmap(-1, n_bytes + rest, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel may have none
            memory.madvise(mmap.MADV_HUGEPAGE)
        # A fork during a direct read could leave the bytes to the child. Source: open(2), NOTES.
        memory.madvise(mmap.MADV_DONTFORK)
    else:
        memory = mmap.mmap(-1, n_bytes)
    return memoryview(memory)[:n_bytes]
