"""Own the reading of a written model: its index and headers, parsed here and by the library.

It shares nothing with the code that writes them, and reads no weights.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.formats.strict_json import identical, parse_object
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import DTYPES, Dtype
from codellama_convert.verify.output_files import (
    CONVERT_AGAIN,
    MAX_LIST_BYTES,
    MODEL_SUFFIX,
    SPELLED_OTHERWISE,
    Complain,
    first_other_byte,
    is_plain_name,
    parse_json,
    read_small,
    sorted_json,
)

# 70B has 723 tensors and a header of 80 kB; the cap keeps a forged one below some 30 MB.
_MAX_HEADER_BYTES = 1 << 20
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """A tensor as an output file's header places it.

    Attributes:
        file: The file.
        dtype: Its element type.
        shape: Its shape.
        offset: Its first byte's position in the file.
        n_bytes: Its size.
    """

    file: Path
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def read_output(folder: Path, complain: Complain) -> dict[str, StoredOutput]:
    """Read the index and the headers of an output folder.

    Args:
        folder: The output.
        complain: Called for each contradiction.

    Returns:
        Every tensor that the files hold; each lies within its file, and none over another.

    Raises:
        VerifyError: If there is nothing to verify, or a file cannot be parsed.
    """
    names = names_in(folder, error=VerifyError)
    if INDEX_NAME in names:
        return _read_indexed(folder, complain)
    if SINGLE_FILE_NAME in names:
        return _read_file(folder / SINGLE_FILE_NAME, complain)
    raise VerifyError(
        f"holds neither {SINGLE_FILE_NAME} nor {INDEX_NAME}",
        path=folder,
        hint="convert first, or finish a conversion that was stopped; a folder of the tokenizer "
        "alone, without conversion.json, is verified with --model_size tokenizer_only",
    )


def read_weights(folder: Path, complain: Complain) -> dict[str, StoredOutput]:
    """Read the headers of a model's folder, whoever wrote it and however it is split.

    Args:
        folder: It holds an index, or one safetensors file.
        complain: Called for each contradiction.

    Returns:
        Every tensor that the files hold.

    Raises:
        VerifyError: If there are no such files, or one cannot be parsed.
    """
    names = names_in(folder, error=VerifyError)
    if INDEX_NAME not in names:
        one = {SINGLE_FILE_NAME} & names or {n for n in names if n.endswith(MODEL_SUFFIX)}
        if len(one) != 1:
            raise VerifyError(
                f"holds no {INDEX_NAME}, and {len(one)} files that end in {MODEL_SUFFIX}",
                path=folder,
                hint="name the folder of one model in Hugging Face's format",
            )
        return _parse_file(folder / one.pop(), complain)[0]
    index = parse_json(read_small(folder / INDEX_NAME, MAX_LIST_BYTES), folder / INDEX_NAME)
    weight_map = _weight_map(index, folder / INDEX_NAME)
    found: dict[str, StoredOutput] = {}
    for name in sorted(set(weight_map.values())):
        _add(found, _parse_file(folder / name, complain)[0], complain)
    for what, shard in _wrong_places(weight_map, found):
        complain(what, file=INDEX_NAME, about=[shard] if shard else ())
    return found


def _add(found: dict[str, StoredOutput], more: dict[str, StoredOutput], complain: Complain) -> None:
    for tensor, stored in more.items():
        if tensor in found:
            first = found[tensor].file.name
            complain(f"tensor {tensor!r} is also in {first}", file=stored.file.name, about=[first])
        found[tensor] = stored


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(is_plain_name, weight_map.values())):
        raise VerifyError("has no weight_map of plain file names", path=path, hint=CONVERT_AGAIN)
    return weight_map


def _read_indexed(folder: Path, complain: Complain) -> dict[str, StoredOutput]:
    path = folder / INDEX_NAME
    raw = read_small(path, MAX_LIST_BYTES)
    index = parse_json(raw, path)
    weight_map = _weight_map(index, path)
    found: dict[str, StoredOutput] = {}
    for name in sorted(set(weight_map.values())):
        _add(found, _read_file(folder / name, complain), complain)
    wrong = list(_wrong_in_index(index, found))
    if not wrong:
        total = index["metadata"]["total_size"]
        spelled = sorted_json({"metadata": {"total_size": total}, "weight_map": weight_map})
        other = first_other_byte(raw, [spelled])
        if other is not None:
            wrong = [(f"{SPELLED_OTHERWISE}: {other}", "")]
    for what, shard in wrong:
        complain(what, file=INDEX_NAME, about=[shard] if shard else ())
    return found


def _wrong_in_index(
    index: dict[str, Any], found: Mapping[str, StoredOutput]
) -> Iterator[tuple[str, str]]:
    """Say where an index contradicts the headers, and which file's it is ("" for no single one)."""
    metadata = index.get("metadata")
    yield from _wrong_places(index["weight_map"], found)
    total = sum(stored.n_bytes for stored in found.values())
    if not isinstance(metadata, dict) or not identical(metadata.get("total_size"), total):
        said = metadata.get("total_size") if isinstance(metadata, dict) else None
        yield f"total_size is {shown(said)}, the sum of the tensors is {total}", ""
        metadata = {}
    extra = (set(index) - {"metadata", "weight_map"}) | (set(metadata) - {"total_size"})
    for key in sorted(extra):
        yield f"has {shown(key)}, which does not belong there", ""


def _wrong_places(
    weight_map: Mapping[str, str], found: Mapping[str, StoredOutput]
) -> Iterator[tuple[str, str]]:
    """Say which tensors are elsewhere than an index says, and the file ("" for no single one)."""
    for tensor, one in sorted(found.items()):
        if weight_map.get(tensor) != one.file.name:
            yield (
                f"tensor {tensor!r} is in {one.file.name}, the index says otherwise",
                one.file.name,
            )
    for tensor in sorted(set(weight_map) - set(found)):
        yield f"tensor {tensor!r} is in no file", ""


def _parse_file(path: Path, complain: Complain) -> tuple[dict[str, StoredOutput], bytes, object]:
    """Parse one file's header: contiguous tensors from its end to the end of the file."""
    raw, n_file_bytes = _read_header(path)
    try:
        header = parse_object(raw)
        metadata = header.pop("__metadata__", None)
        stored = {name: _stored(path, name, entry, 8 + len(raw)) for name, entry in header.items()}
        _require_contiguous(stored, 8 + len(raw), n_file_bytes)
    except ValueError as problem:
        raise VerifyError(
            f"has a damaged safetensors header: {problem}", path=path, hint=CONVERT_AGAIN
        ) from problem
    _compare_with_library(path, stored, complain)
    return stored, raw, metadata


def _read_file(path: Path, complain: Complain) -> dict[str, StoredOutput]:
    """Parse one file's header, and compare its spelling with what the library writes."""
    stored, raw, metadata = _parse_file(path, complain)
    if metadata != {"format": "pt"}:
        complain(f"metadata is {shown(metadata)}, expected format 'pt'", file=path.name)
    else:
        other = first_other_byte(raw, [_library_header(stored)])
        if other is not None:
            what = f"the header is not laid out as the safetensors library would: {other}"
            complain(what, file=path.name)
    return stored


def _library_header(stored: Mapping[str, StoredOutput]) -> bytes:
    """Spell the header that the safetensors library gives these tensors.

    Source:
        huggingface/safetensors tensor.rs, `prepare`: the wider element first, then by name, without
        gaps; padded with spaces to 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, one in sorted(stored.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        start, end = end, end + one.n_bytes
        place = {"shape": list(one.shape), "data_offsets": [start, end]}
        header[name] = {"dtype": one.dtype.code, **place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    raw = text.encode(errors="surrogatepass")
    return raw + b" " * (-len(raw) % 8)


def _read_header(path: Path) -> tuple[bytes, int]:
    """Read a file's header and the file's size."""
    with InputFile(path, error=VerifyError) as file:
        (n_bytes,) = struct.unpack("<Q", file.read_exact(0, 8)) if file.n_bytes >= 8 else (0,)
        if not 0 < n_bytes <= file.n_bytes - 8:
            raise VerifyError("has no safetensors header", path=path, hint=CONVERT_AGAIN)
        if n_bytes > _MAX_HEADER_BYTES:
            raise VerifyError(f"has an implausible header of {n_bytes} bytes", path=path)
        return file.read_exact(8, n_bytes), file.n_bytes


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredOutput:
    """Take one entry of a header; ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} has an entry of an unexpected form")
    dtype = next((d for d in DTYPES if d.code == entry["dtype"]), None)
    if dtype is None:
        raise ValueError(f"tensor {shown(name)} has the dtype {shown(entry['dtype'])}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {shown(name)} has no valid shape and offsets")
    start, end = offsets
    wanted = prod(shape) * dtype.itemsize
    if end - start != wanted:
        raise ValueError(
            f"tensor {shown(name)} has {end - start} bytes, but its shape {tuple(shape)} of "
            f"{dtype.name} takes {wanted}"
        )
    return StoredOutput(path, dtype, tuple(shape), data_start + start, wanted)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


def _require_contiguous(
    stored: Mapping[str, StoredOutput], data_start: int, n_file_bytes: int
) -> None:
    end = data_start
    for name, one in sorted(stored.items(), key=lambda item: item[1].offset):
        if one.offset != end:
            raise ValueError(f"tensor {shown(name)} begins at byte {one.offset}, expected {end}")
        end += one.n_bytes
    if end != n_file_bytes:
        raise ValueError(f"the file has {n_file_bytes} bytes, the header accounts for {end}")


def _compare_with_library(
    path: Path, stored: Mapping[str, StoredOutput], complain: Complain
) -> None:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - numpy is not always there

    try:
        with safe_open(path, framework="numpy") as library:
            names = set(library.keys())
            if names != set(stored):
                complain("the safetensors library finds other tensors", file=path.name)
            for name in sorted(names & set(stored)):
                piece = library.get_slice(name)
                seen = (tuple(piece.get_shape()), piece.get_dtype())
                if seen != (stored[name].shape, stored[name].dtype.code):
                    complain(f"the safetensors library sees {name!r} as {seen}", file=path.name)
    except SafetensorError as problem:
        complain(f"the safetensors library refuses it ({problem})", file=path.name)
    except OSError as problem:
        raise VerifyError(f"cannot open: {first_line(problem)}", path=path) from problem
