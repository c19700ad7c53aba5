"""Own the check of an output against its own record, conversion.json.

Without the source, every byte is read once, several tensors at a time, at the disk's speed. Beside
the source, the record itself is held against both. Print nothing.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.conversion_record import FileSums, Record, read_record
from codellama_convert.crc32 import combine
from codellama_convert.digests import file_digest
from codellama_convert.errors import ConvertError, VerifyError, shown
from codellama_convert.files import aligned_buffer
from codellama_convert.input_file import InputFile
from codellama_convert.output_reader import (
    CONVERSION_NAME,
    MODEL_SUFFIX,
    StoredOutput,
    names_in,
    read_output,
)
from codellama_convert.safetensors_io import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.verify_report import Problems, Progress, VerifyReport

_CHUNK_BYTES = 2 << 20
_WORKERS = 4
_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER_FILES = (
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip


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
    record = read_record(output_dir)
    if record is None:
        raise VerifyError(
            f"holds no {CONVERSION_NAME} to verify it against",
            path=output_dir,
            hint="name the checkpoint with --input_dir",
        )
    problems = Problems()
    names = names_in(output_dir)
    has_model = bool(record.tensors) or INDEX_NAME in names or SINGLE_FILE_NAME in names
    stored = read_output(output_dir, problems.add) if has_model else {}
    _compare_places(record, stored, problems)
    n_bytes = 0
    for name in sorted(record.files):
        n_bytes += _compare_file(output_dir / name, record, stored, problems, progress)
    return VerifyReport(output_dir, "record", len(record.tensors), n_bytes, problems.lines())


def check_record(
    output_dir: Path,
    record: Record,
    *,
    stored: Mapping[str, StoredOutput],
    source: Mapping[str, FileSums],
    problems: Problems,
) -> None:
    """Hold a record against an output and its source; the sums of the weights are left out.

    Args:
        output_dir: What was converted.
        record: Its record.
        stored: The tensors that it holds.
        source: What the ranks are.
        problems: Gets what differs.
    """
    for name in sorted(record.files):
        # What differs from the source differs from the record too, which says less of it.
        if not name.endswith(MODEL_SUFFIX) and not problems.tell_of(name):
            _compare_file(output_dir / name, record, {}, problems, None)
    _compare_places(record, stored, problems)
    for name in sorted({*record.source, *source}):
        said, found = record.source.get(name), source.get(name)
        if said != found:
            problems.add(
                f"{CONVERSION_NAME}: says that {name} {_told(said)}; the checkpoint's {_told(found)}"
            )


def _told(sums: FileSums | None) -> str:
    return "is missing" if sums is None else f"has {sums.size} bytes and CRC-32 {sums.crc32}"


def _compare_places(record: Record, stored: Mapping[str, StoredOutput], problems: Problems) -> None:
    """Compare what the record says is where, and look whether it speaks of all."""
    for name in sorted({*record.tensors, *stored}):
        listed, found = record.tensors.get(name), stored.get(name)
        said = listed and _place(listed.file, listed.dtype, listed.shape, listed.size)
        seen = found and _place(found.file.name, found.dtype.code, found.shape, found.n_bytes)
        if said != seen:
            problems.add(
                f"tensor {shown(name)}: {seen or 'not found'}, the record says {said or 'nothing'}"
            )
    model_files = {listed.file for listed in record.tensors.values()}
    needed = model_files | set(_CONFIGS if model_files else _TOKENIZER_FILES)
    if len(model_files) > 1:
        needed.add(INDEX_NAME)
    if record.options.get("skip_tokenizer") is not True:
        needed.update(_TOKENIZER_FILES)
    for name in sorted(needed - set(record.files)):
        problems.add(f"{CONVERSION_NAME}: files lacks {name}")
    listed_models = {name for name in record.files if name.endswith(MODEL_SUFFIX)}
    for name in sorted(listed_models - model_files):
        problems.add(f"{CONVERSION_NAME}: names no tensor of {name}")


def _place(file: str, dtype: str, shape: tuple[int, ...], n_bytes: int) -> str:
    return f"{dtype} {shape} of {n_bytes} bytes in {file}"


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a file whose sum is wanted: a tensor, or what lies between two."""

    tensor: str | None
    start: int
    end: int


def _compare_file(
    path: Path,
    record: Record,
    stored: Mapping[str, StoredOutput],
    problems: Problems,
    progress: Progress | None,
) -> int:
    """Read a file once and compare its sums and those of its tensors; give the bytes read."""
    listed = record.files[path.name]
    try:
        with InputFile(path, io_mode="auto", error=VerifyError) as file:
            if file.n_bytes != listed.size:
                problems.add(
                    f"{path.name}: has {file.n_bytes} bytes, the record says {listed.size}"
                )
                return 0
            whole = 0
            spans = _spans(path, file.n_bytes, stored)
            for span, crc in zip(spans, _sums(file, spans, progress), strict=True):
                whole = combine(whole, crc, span.end - span.start)
                said = record.tensors.get(span.tensor) if span.tensor is not None else None
                if said is not None and said.crc32 != f"{crc:08x}":
                    problems.add(
                        f"{path.name}: tensor {span.tensor!r} has CRC-32 {crc:08x}, the record says "
                        f"{said.crc32}"
                    )
        if f"{whole:08x}" != listed.crc32:
            problems.add(f"{path.name}: has CRC-32 {whole:08x}, the record says {listed.crc32}")
        elif listed.sha256 is not None:
            sha256 = file_digest(path, "sha256", error=VerifyError)
            if sha256 != listed.sha256:
                problems.add(f"{path.name}: has SHA-256 {sha256}, the record says {listed.sha256}")
    except ConvertError as problem:  # the other files are still worth reading
        problems.add(str(problem))
        return 0
    return listed.size


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
