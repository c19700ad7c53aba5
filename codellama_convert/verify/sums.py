"""Own the comparison of files with the sums that a record has of them: read once, by several threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import ConvertError, VerifyError
from codellama_convert.storage.blocks import SLACK_BYTES, IoMode
from codellama_convert.storage.buffers import LARGE_PAGE_BYTES, aligned_buffer
from codellama_convert.storage.checksums import combine, crc32
from codellama_convert.storage.digests import file_digest
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.threads import share_out
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.record_reader import FileSums, Record
from codellama_convert.verify.report import Problems

_CHUNK_BYTES = LARGE_PAGE_BYTES - SLACK_BYTES


@dataclass(frozen=True, slots=True)
class FileReading:
    """How files are read.

    Attributes:
        io_mode: Past the page cache or through it.
        workers: Pieces that are read at once.
        watch: Whom the bytes that are read are reported to.
        executor: Whose workers compare tensors with their source; None is threads of this process.
        max_ram_bytes: Largest sum of all buffers, as it was asked for: fewer tensors are compared at
            once where they would take more.
    """

    io_mode: IoMode
    workers: int
    watch: Watch
    executor: Executor | None = None
    max_ram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a file whose sum is wanted: a tensor, or what lies between two."""

    tensor: str | None
    start: int
    end: int


def compare_file(
    path: Path,
    record: Record,
    stored: Mapping[str, StoredOutput],
    problems: Problems,
    reading: FileReading,
) -> int:
    """Read a file once and compare its sums and those of its tensors.

    Args:
        path: The file; the record names it.
        record: What it is compared with.
        stored: The tensors of the output.
        problems: Gets what differs.
        reading: How it is read.

    Returns:
        The bytes that were read.
    """
    listed = record.files[path.name]
    try:
        with InputFile(path, io_mode=reading.io_mode, error=VerifyError) as file:
            if file.n_bytes != listed.size:
                problems.add(
                    f"has {file.n_bytes} bytes, the record says {listed.size}", file=path.name
                )
                return 0
            whole = 0
            spans = _spans(path, file.n_bytes, stored)
            for span, crc in zip(spans, _sums(file, spans, reading), strict=True):
                whole = combine(whole, crc, span.end - span.start)
                said = record.tensors.get(span.tensor) if span.tensor is not None else None
                if said is not None and said.crc32 != f"{crc:08x}":
                    problems.add(
                        f"tensor {span.tensor!r} has CRC-32 {crc:08x}, the record says "
                        f"{said.crc32}",
                        file=path.name,
                    )
        _compare_sums(path, listed, whole, problems)
    except ConvertError as problem:  # the other files are still worth reading
        problems.add_error(problem)
        return 0
    return listed.size


def compare_shard(
    path: Path,
    record: Record,
    stored: Mapping[str, StoredOutput],
    crcs: Mapping[str, int],
    problems: Problems,
) -> None:
    """Compare the sums of a file whose tensors were read already, and found right.

    Args:
        path: The file; the record names it.
        record: What it is compared with.
        stored: The tensors of the output.
        crcs: Those of them.
        problems: Gets what differs.
    """
    listed = record.files[path.name]
    try:
        found = sum_file(path, stored, crcs)
        if found is None:
            return
        if found.size != listed.size:
            problems.add(f"has {found.size} bytes, the record says {listed.size}", file=path.name)
        else:
            _compare_sums(path, listed, int(found.crc32, 16), problems)
    except ConvertError as problem:
        problems.add_error(problem)


def sum_file(
    path: Path, stored: Mapping[str, StoredOutput], crcs: Mapping[str, int]
) -> FileSums | None:
    """Sum a file whose tensors were read already.

    Args:
        path: The file.
        stored: The tensors of the output.
        crcs: Their sums.

    Returns:
        Its size and sum; None where that of a tensor is not known, which was reported.

    Raises:
        VerifyError: If it cannot be read.
    """
    with InputFile(path, error=VerifyError) as file:
        whole = 0
        for span in _spans(path, file.n_bytes, stored):
            if span.tensor is None:
                crc = crc32(file.read_exact(span.start, span.end - span.start))
            elif span.tensor in crcs:
                crc = crcs[span.tensor]
            else:
                return None
            whole = combine(whole, crc, span.end - span.start)
        return FileSums(file.n_bytes, f"{whole:08x}")


def _compare_sums(path: Path, listed: FileSums, crc: int, problems: Problems) -> None:
    if f"{crc:08x}" != listed.crc32:
        problems.add(f"has CRC-32 {crc:08x}, the record says {listed.crc32}", file=path.name)
    elif listed.sha256 is not None:
        sha256 = file_digest(path, "sha256", error=VerifyError, watch=Watch())
        if sha256 != listed.sha256:
            problems.add(f"has SHA-256 {sha256}, the record says {listed.sha256}", file=path.name)


def _spans(path: Path, n_bytes: int, stored: Mapping[str, StoredOutput]) -> list[_Span]:
    """Cut a file into its tensors and what lies before, between and behind them."""
    inside = sorted((one.offset, name) for name, one in stored.items() if one.file == path)
    spans: list[_Span] = []
    position = 0
    for offset, name in inside:
        if offset > position:
            spans.append(_Span(None, position, offset))
        position = offset + stored[name].n_bytes
        spans.append(_Span(name, offset, position))
    if position < n_bytes:
        spans.append(_Span(None, position, n_bytes))
    return spans


def _sums(file: InputFile, spans: Sequence[_Span], reading: FileReading) -> list[int]:
    """Sum each span with CRC-32, several at a time."""

    def sum_of(span: _Span, buffer: memoryview, watch: Watch) -> int:
        crc = 0
        for piece in file.read_pieces(buffer, span.start, span.end):
            crc = crc32(piece, crc)
            watch.advance(len(piece))
        return crc

    n_workers = min(reading.workers, len(spans))
    buffers = [aligned_buffer(_CHUNK_BYTES) for _ in range(n_workers)]
    return share_out(spans, buffers, sum_of, reading.watch)
