"""Own the check of an output against its own record, conversion.json, without its source.

Every byte is read once, several tensors at a time, at the disk's speed. Print nothing.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_convert.crc32 import combine
from codellama_convert.errors import ConvertError, VerifyError
from codellama_convert.files import aligned_buffer
from codellama_convert.input_file import InputFile
from codellama_convert.output_reader import StoredOutput, json_file, read_output
from codellama_convert.provenance import CONVERSION_NAME, file_sha256

Progress = Callable[[int], None]

_MAX_PROBLEMS = 20
_CHUNK_BYTES = 2 << 20
_WORKERS = 4


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        output_dir: What was verified.
        against: "source", or "record" where the output's own conversion.json was used.
        n_tensors: Tensors compared.
        n_bytes: Bytes read, of both sides.
        problems: One line each, the first ones; empty where everything is right.
    """

    output_dir: Path
    against: str
    n_tensors: int
    n_bytes: int
    problems: tuple[str, ...]


@dataclass(slots=True)
class Problems:
    """Problems as they are found, from several threads; the first ones are kept."""

    texts: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, text: str) -> None:
        """Take one line."""
        with self.lock:
            if len(self.texts) < _MAX_PROBLEMS:
                self.texts.append(text)


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a file whose sum is wanted: a tensor, or what lies between two."""

    tensor: str | None
    start: int
    end: int


def verify_record(output_dir: Path, *, progress: Progress | None = None) -> VerifyReport:
    """Compare an output folder with its own conversion.json.

    Args:
        output_dir: What was converted.
        progress: Called with the bytes that were read, from several threads.

    Returns:
        What was found.

    Raises:
        VerifyError: If there is no record, or a file cannot be parsed.
    """
    path = output_dir / CONVERSION_NAME
    if not path.exists():
        raise VerifyError(
            f"holds no {CONVERSION_NAME} to verify it against",
            path=output_dir,
            hint="name the checkpoint with --input_dir",
        )
    problems = Problems()
    record = json_file(path)
    try:
        files = {str(name): _FileRecord(**entry) for name, entry in record["files"].items()}
        tensors = {str(name): _TensorRecord(**entry) for name, entry in record["tensors"].items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise VerifyError("is not a conversion's record", path=path) from problem
    stored = read_output(output_dir, problems.add) if tensors else {}
    _compare_places(tensors, stored, problems)
    sums_of = {name: listed.crc32 for name, listed in tensors.items()}
    n_bytes = 0
    for name, listed in sorted(files.items()):
        try:
            found = _sum_file(output_dir / name, stored, progress)
        except ConvertError as problem:  # noqa: PERF203 - the other files are still worth reading
            problems.add(str(problem))
        else:
            _compare_sums(output_dir / name, listed, sums_of, found, problems)
            n_bytes += found.n_bytes
    return VerifyReport(output_dir, "record", len(tensors), n_bytes, tuple(problems.texts))


@dataclass(frozen=True, slots=True)
class _FoundSums:
    """What a file was found to hold."""

    n_bytes: int
    whole: str
    tensors: dict[str, str]


@dataclass(frozen=True, slots=True)
class _FileRecord:
    """What conversion.json says of a file."""

    size: int
    crc32: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class _TensorRecord:
    """What conversion.json says of a tensor."""

    file: str
    dtype: str
    shape: list[int]
    size: int
    crc32: str
    became_zero: int = 0
    nonfinite: int = 0


def _compare_places(
    tensors: Mapping[str, _TensorRecord], stored: Mapping[str, StoredOutput], problems: Problems
) -> None:
    for name in sorted({*tensors, *stored}):
        listed, found = tensors.get(name), stored.get(name)
        said = listed and (listed.file, listed.dtype, tuple(listed.shape), listed.size)
        seen = found and (found.file.name, found.dtype.code, found.shape, found.n_bytes)
        if said != seen:
            problems.add(f"tensor {name!r} is {seen}, the record says {said}")


def _sum_file(
    path: Path, stored: Mapping[str, StoredOutput], progress: Progress | None
) -> _FoundSums:
    """Read a file once; give the CRC-32 of all of it and of each tensor in it."""
    with InputFile(path, io_mode="auto", error=VerifyError) as file:
        spans = _spans(path, file.n_bytes, stored)
        whole = 0
        of_tensors: dict[str, str] = {}
        for span, crc in zip(spans, _sums(file, spans, progress), strict=True):
            whole = combine(whole, crc, span.end - span.start)
            if span.tensor is not None:
                of_tensors[span.tensor] = f"{crc:08x}"
        return _FoundSums(file.n_bytes, f"{whole:08x}", of_tensors)


def _compare_sums(
    path: Path,
    listed: _FileRecord,
    sums_of: Mapping[str, str],
    found: _FoundSums,
    problems: Problems,
) -> None:
    for name, crc in found.tensors.items():
        if sums_of.get(name, crc) != crc:
            problems.add(
                f"{path.name}: tensor {name!r} has CRC-32 {crc}, the record says {sums_of[name]}"
            )
    if found.n_bytes != listed.size:
        problems.add(f"{path.name}: has {found.n_bytes} bytes, the record says {listed.size}")
    elif found.whole != listed.crc32:
        problems.add(f"{path.name}: has CRC-32 {found.whole}, the record says {listed.crc32}")
    elif listed.sha256 is not None and file_sha256(path) != listed.sha256:
        problems.add(f"{path.name}: its SHA-256 is not that of the record")


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


def _sums(file: InputFile, spans: list[_Span], progress: Progress | None) -> Iterator[int]:
    """Give each span's CRC-32, several at a time."""
    own = threading.local()

    def sum_of(span: _Span) -> int:
        buffer: Any = getattr(own, "buffer", None)
        if buffer is None:
            buffer = own.buffer = aligned_buffer(_CHUNK_BYTES)
        crc = 0
        for piece in file.read_pieces(buffer, span.start, span.end):
            crc = zlib.crc32(piece, crc)
            if progress is not None:
                progress(len(piece))
        return crc

    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(sum_of, spans)
