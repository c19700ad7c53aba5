"""Copy files past the page cache, as plainly as can be: the floor that a benchmark compares with.

Example: python examples/benchmark/direct_copy.py --threads 2 --target copy.bin consolidated.00.pth

Nothing is checked, changed or converted, and only the standard library is used. The target's space
is reserved first and its bytes are on the disk at the end, as a careful tool would do it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 4096  # direct I/O wants positions, lengths and addresses at multiples of it


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a source and where it goes.

    Attributes:
        fd: The open source.
        offset: The first byte's position in the source.
        n_bytes: How many bytes; the last piece of a source may end inside a block.
        target_offset: Where the first copy of it goes.
    """

    fd: int
    offset: int
    n_bytes: int
    target_offset: int


def block_ceil(n_bytes: int) -> int:
    """Round up to whole blocks."""
    return -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES


def files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """Replace every folder by the files in it."""
    for path in paths:
        yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,)


def cut(sources: Sequence[int], tile_bytes: int, write_times: int) -> Iterator[Chunk]:
    """Cut open files into chunks, in order.

    Args:
        sources: Descriptors.
        tile_bytes: Size of a chunk, a multiple of the block.
        write_times: How often each chunk is written: a wider dtype writes more than it reads.

    Yields:
        The chunks; each source begins at a block of the target.
    """
    target_offset = 0
    for fd in sources:
        size = os.fstat(fd).st_size
        for offset in range(0, size, tile_bytes):
            n_bytes = min(tile_bytes, size - offset)
            yield Chunk(fd, offset, n_bytes, target_offset)
            target_offset += write_times * block_ceil(n_bytes)


def new_buffer(n_bytes: int, *, large_pages: bool) -> memoryview:
    """Map zeroed memory; in large pages direct I/O is cheaper, but a program has to ask for them."""
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if large_pages else mmap.MADV_NOHUGEPAGE)
    return memoryview(memory)


def read_chunk(chunk: Chunk, buffer: memoryview) -> None:
    """Fill a buffer with a chunk.

    Args:
        chunk: What to read.
        buffer: Page-aligned, of whole blocks.

    Raises:
        EOFError: If the source became shorter.
    """
    done = 0
    while done < chunk.n_bytes:
        count = os.preadv(chunk.fd, [buffer[done:]], chunk.offset + done)
        if count == 0:
            raise EOFError(f"a source ended at byte {chunk.offset + done}")
        done += count


def write_blocks(fd: int, blocks: memoryview, offset: int) -> None:
    """Write whole blocks at a position."""
    done = 0
    while done < len(blocks):
        done += os.pwrite(fd, blocks[done:], offset + done)


def copy(
    chunks: Iterator[Chunk],
    *,
    target: int | None,
    tile_bytes: int,
    write_times: int,
    threads: int,
    large_pages: bool,
) -> None:
    """Copy chunks with several threads; the first problem of one stops all.

    Args:
        chunks: What to read.
        target: Where to write; None reads only.
        tile_bytes: Size of a chunk.
        write_times: How often each chunk is written.
        threads: How many.
        large_pages: Whether their buffers are in large pages.

    Raises:
        OSError: If reading or writing fails.
    """
    lock = threading.Lock()
    problems: list[BaseException] = []

    def next_chunk() -> Chunk | None:
        with lock:
            return None if problems else next(chunks, None)

    def work() -> None:
        buffer = new_buffer(tile_bytes, large_pages=large_pages)
        try:
            while (chunk := next_chunk()) is not None:
                blocks = buffer[: block_ceil(chunk.n_bytes)]
                read_chunk(chunk, blocks)
                if target is not None:
                    for number in range(write_times):
                        write_blocks(target, blocks, chunk.target_offset + number * len(blocks))
        except (OSError, EOFError) as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise problems[0]


def create(path: Path, n_bytes: int, direct: int) -> int:
    """Make a new file with its space reserved.

    Args:
        path: It must not exist.
        n_bytes: Its size.
        direct: O_DIRECT or 0.

    Returns:
        A descriptor.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | direct, 0o666)
    if n_bytes:
        os.posix_fallocate(fd, 0, n_bytes)
    return fd


def main() -> None:
    """Copy the files named on the command line into one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "sources", nargs="+", type=Path, help="Files or folders of files, one behind the other."
    )
    parser.add_argument(
        "--target", type=Path, help="The new file; without it, bytes are read only."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tile_bytes", "--tile-bytes", type=int, default=4 << 20)
    parser.add_argument(
        "--write_times", "--write-times", type=int, default=1, help="How often to write each chunk."
    )
    parser.add_argument(
        "--large_pages", "--large-pages", action="store_true",
        help="Have the data in large pages, and not in those of 4 KiB.",
    )  # fmt: skip
    parser.add_argument("--buffered", action="store_true", help="Go through the page cache.")
    options = parser.parse_args()

    direct = 0 if options.buffered else os.O_DIRECT
    tile_bytes = block_ceil(options.tile_bytes)
    sources = [os.open(path, os.O_RDONLY | direct) for path in files_of(options.sources)]
    n_bytes = options.write_times * sum(block_ceil(os.fstat(fd).st_size) for fd in sources)
    target = None if options.target is None else create(options.target, n_bytes, direct)
    chunks = cut(sources, tile_bytes, options.write_times)
    copy(
        chunks,
        target=target,
        tile_bytes=tile_bytes,
        write_times=options.write_times,
        threads=options.threads,
        large_pages=options.large_pages,
    )
    if target is not None:
        if options.write_times == 1:  # the last block was filled up; a copy has its source's size
            os.ftruncate(target, n_bytes - block_ceil(size := os.fstat(sources[-1]).st_size) + size)
        os.fsync(target)


if __name__ == "__main__":
    main()
