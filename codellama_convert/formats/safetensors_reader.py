"""Own what a safetensors file of any writer says about its tensors.

Every number of the header is checked, in Python's unbounded integers, against the size of the file,
before anything is read by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from codellama_convert.errors import CheckpointError, shown
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import DTYPES, Dtype

_FORMAT_LIMIT_BYTES = 100_000_000  # huggingface/safetensors tensor.rs, MAX_HEADER_SIZE
# 70B in one file takes 80 kB; the cap bounds what a forged header costs to hold.
_MAX_HEADER_BYTES = 4 << 20
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_AGAIN = "download it again, or save it again with the safetensors library"
_TRUNCATED = "the file is truncated: download it again"

# huggingface/safetensors tensor.rs, `Dtype::bitsize`.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_DTYPES: Mapping[str, Dtype] = {dtype.code: dtype for dtype in DTYPES}


@dataclass(frozen=True, slots=True)
class SafetensorsIndex:
    """What one safetensors file holds; picklable, and free of open files.

    Attributes:
        path: The file.
        n_bytes: Its size.
        inode: Device and inode.
        mtime_ns: Time of its last change.
        tensors: Those of a dtype that a model may have, by name, in the order of their bytes.
        storages: By the tensor's name: each has its bytes for itself. The format keeps no sums.
        other_dtypes: The codes of the dtypes of all other tensors, by name: integers, 8 bits.
        header_sha256: Of the header, which says where everything lies.
    """

    path: Path
    n_bytes: int
    inode: tuple[int, int]
    mtime_ns: int
    tensors: dict[str, StoredTensor]
    storages: dict[str, Storage]
    other_dtypes: dict[str, str]
    header_sha256: str

    @property
    def fingerprint(self) -> list[Any]:
        """What distinguishes the file from others, as plain values: its header has no sum of the weights."""
        return [self.n_bytes, self.header_sha256, self.mtime_ns]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a header: a dtype's code, a shape, and bytes behind the header."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> SafetensorsIndex:
    """Read which tensors a safetensors file holds, and where their bytes lie.

    Args:
        path: The file; its tensors may stand in any order, with any metadata and padding.

    Returns:
        The index; of the data, nothing is read.

    Raises:
        CheckpointError: If the file is damaged, hostile or of another kind.
    """
    with InputFile(path) as file:
        raw = _read_header(file)
        try:
            entries = _entries(parse_object(raw))
        except ValueError as problem:
            raise CheckpointError(
                f"has a damaged safetensors header: {problem}", path=path, hint=_AGAIN
            ) from problem
        data_start = _LENGTH_BYTES + len(raw)
        _require_filled(path, entries, file.n_bytes - data_start)
        tensors, storages = _stored(entries, data_start)
        return SafetensorsIndex(
            path=path,
            n_bytes=file.n_bytes,
            inode=file.inode,
            mtime_ns=file.mtime_ns,
            tensors=tensors,
            storages=storages,
            other_dtypes={n: one.code for n, one in entries.items() if one.code not in _DTYPES},
            header_sha256=hashlib.sha256(raw).hexdigest(),
        )


def _read_header(file: InputFile) -> bytes:
    """Read the JSON at a file's beginning, its padding included."""
    head = file.read_exact(0, min(HEAD_BYTES, file.n_bytes))
    n_bytes = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or n_bytes > _FORMAT_LIMIT_BYTES:
        refuse_other_kind(head, "safetensors", path=file.path, error=CheckpointError)
        raise CheckpointError("is not a safetensors file", path=file.path, hint=_AGAIN)
    if n_bytes > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"has a header of {n_bytes} bytes, which is too large: a Llama model's is not larger "
            f"than {_MAX_HEADER_BYTES} bytes",
            path=file.path,
            hint=_AGAIN,
        )
    if n_bytes > file.n_bytes - _LENGTH_BYTES:
        raise CheckpointError(
            f"has {file.n_bytes} bytes, and its header alone {n_bytes}",
            path=file.path,
            hint=_TRUNCATED,
        )
    return file.read_exact(_LENGTH_BYTES, n_bytes)


def _entries(header: dict[str, Any]) -> dict[str, _Entry]:
    """Take a header's entries, in the order of their bytes; ValueError says what is wrong."""
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_texts(metadata):
        raise ValueError("its __metadata__ is not an object of strings")
    found = {name: _entry(name, value) for name, value in header.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end, item[0])))


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _entry(name: str, value: object) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} has an entry of an unexpected form")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _BITS:
        raise ValueError(f"tensor {shown(name)} has the unknown dtype {shown(code, 40)}")
    if not _is_sizes(shape):
        raise ValueError(f"tensor {shown(name)} has the shape {shown(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has the data_offsets {shown(offsets)}")
    start, end = offsets
    n_bits = prod(shape) * _BITS[code]
    if 8 * (end - start) != n_bits:
        raise ValueError(
            f"tensor {shown(name)} has {end - start} bytes, but its shape {tuple(shape)} of "
            f"{code} takes {-(-n_bits // 8)}"
        )
    return _Entry(code, tuple(shape), start, end)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


def _require_filled(path: Path, entries: Mapping[str, _Entry], n_data_bytes: int) -> None:
    """Refuse tensors that overlap, bytes that no tensor has, and data that is not there."""
    end, last = 0, ""
    for name, one in entries.items():
        if one.start < end:
            what = f"tensor {shown(name)} begins at byte {one.start} of the data"
            raise CheckpointError(
                f"{what}, inside tensor {shown(last)}, which ends at {end}", path=path, hint=_AGAIN
            )
        if one.start > end:
            raise CheckpointError(
                f"bytes {end} to {one.start} of the data belong to no tensor",
                path=path,
                hint=_AGAIN,
            )
        end, last = one.end, name
    if end > n_data_bytes:
        raise CheckpointError(
            f"holds {n_data_bytes} bytes of data, and its header describes {end}",
            path=path,
            hint=_TRUNCATED,
        )
    if end < n_data_bytes:
        raise CheckpointError(
            f"bytes {end} to {n_data_bytes} of the data belong to no tensor", path=path, hint=_AGAIN
        )


def _stored(
    entries: Mapping[str, _Entry], data_start: int
) -> tuple[dict[str, StoredTensor], dict[str, Storage]]:
    """Say of each tensor of a model's dtype where its elements lie: in order, without gaps."""
    tensors: dict[str, StoredTensor] = {}
    storages: dict[str, Storage] = {}
    for name, one in entries.items():
        if one.code not in _DTYPES:
            continue
        dtype = _DTYPES[one.code]
        storages[name] = Storage(name, dtype, data_start + one.start, one.end - one.start, None)
        strides = tuple(prod(one.shape[i + 1 :]) for i in range(len(one.shape)))
        tensors[name] = StoredTensor(name, one.shape, strides, 0, storages[name])
    return tensors, storages
