"""Own the reading of a written model: its index and headers, parsed here and by the library.

It shares nothing with the code that writes them, and reads no weights.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError
from codellama_convert.files import first_line
from codellama_convert.input_file import InputFile
from codellama_convert.safetensors_io import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.tensors import DTYPES, Dtype

Complain = Callable[[str], None]

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_JSON_BYTES = 64 << 20


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
        complain: Called with one line for each contradiction.

    Returns:
        Every tensor that the files hold.

    Raises:
        VerifyError: If there is nothing to verify, or a file cannot be parsed.
    """
    single = folder / SINGLE_FILE_NAME
    if (folder / INDEX_NAME).exists():
        found = _read_indexed(folder, complain)
        if single.exists():
            complain(f"{SINGLE_FILE_NAME} lies beside {INDEX_NAME}: loaders disagree which to take")
    elif single.exists():
        found = _read_file(single, complain)
    else:
        raise VerifyError(
            f"holds neither {SINGLE_FILE_NAME} nor {INDEX_NAME}", path=folder, hint="convert first"
        )
    used = {one.file.name for one in found.values()} | {SINGLE_FILE_NAME}
    stray = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in used)
    if stray:
        complain(f"{stray[0]} is in the folder, but not in the model")
    return found


def _read_indexed(folder: Path, complain: Complain) -> dict[str, StoredOutput]:
    path = folder / INDEX_NAME
    index = json_file(path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and "/" not in name and "\\" not in name
        for name in weight_map.values()
    ):
        raise VerifyError("has no weight_map of plain file names", path=path)
    found: dict[str, StoredOutput] = {}
    for name in sorted(set(weight_map.values())):
        for tensor, stored in _read_file(folder / name, complain).items():
            if tensor in found:
                complain(f"{name}: tensor {tensor!r} is also in {found[tensor].file.name}")
            found[tensor] = stored
            if weight_map.get(tensor) != name:
                complain(f"{INDEX_NAME}: tensor {tensor!r} is in {name}, the index says otherwise")
    for tensor in sorted(set(weight_map) - set(found)):
        complain(f"{INDEX_NAME}: tensor {tensor!r} is in no file")
    total = sum(stored.n_bytes for stored in found.values())
    metadata = index.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("total_size") != total:
        complain(f"{INDEX_NAME}: total_size is not {total}, the sum of the tensors")
    return found


def json_file(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        VerifyError: If it cannot be read, is too large or is no JSON object.
    """
    try:
        with InputFile(path, error=VerifyError) as file:
            if file.n_bytes > _MAX_JSON_BYTES:
                raise VerifyError("is too large", path=path)
            content = json.loads(file.read_exact(0, file.n_bytes))
    except (ValueError, RecursionError) as problem:
        raise VerifyError(f"is not JSON ({str(problem)[:80]})", path=path) from problem
    if not isinstance(content, dict):
        raise VerifyError("is not a JSON object", path=path)
    return content


def _read_file(path: Path, complain: Complain) -> dict[str, StoredOutput]:
    """Parse one file's header: contiguous tensors from its end to the end of the file."""
    with InputFile(path, error=VerifyError) as file:
        (header_bytes,) = struct.unpack("<Q", file.read_exact(0, 8)) if file.n_bytes >= 8 else (0,)
        if not 0 < header_bytes <= min(_MAX_HEADER_BYTES, file.n_bytes - 8):
            raise VerifyError("has no safetensors header", path=path)
        raw = file.read_exact(8, header_bytes)
        n_file_bytes = file.n_bytes
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        stored = {name: _stored(path, entry, 8 + header_bytes) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise VerifyError("has a damaged safetensors header", path=path) from problem
    if metadata != {"format": "pt"}:
        complain(f"{path.name}: metadata is {metadata!r}, not the format of torch")
    end = 8 + header_bytes
    for name, one in stored.items():
        if one.offset != end:
            complain(f"{path.name}: tensor {name!r} begins at byte {one.offset}, expected {end}")
        end = one.offset + one.n_bytes
    if end != n_file_bytes:
        complain(f"{path.name}: has {n_file_bytes} bytes, the header accounts for {end}")
    _compare_with_library(path, stored, complain)
    return stored


def _stored(path: Path, entry: Mapping[str, Any], data_start: int) -> StoredOutput:
    start, end = entry["data_offsets"]
    dtype = next((d for d in DTYPES if d.code == entry["dtype"]), None)
    if dtype is None:
        raise ValueError(entry["dtype"])
    return StoredOutput(path, dtype, tuple(entry["shape"]), data_start + start, end - start)


def _compare_with_library(
    path: Path, stored: Mapping[str, StoredOutput], complain: Complain
) -> None:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - numpy is not always there

    try:
        with safe_open(path, framework="numpy") as library:
            names = set(library.keys())
            if names != set(stored):
                complain(f"{path.name}: the safetensors library sees other tensors")
            for name in names & set(stored):
                piece = library.get_slice(name)
                seen = (tuple(piece.get_shape()), piece.get_dtype())
                if seen != (stored[name].shape, stored[name].dtype.code):
                    complain(f"{path.name}: the safetensors library sees {name!r} as {seen}")
    except SafetensorError as problem:
        complain(f"{path.name}: the safetensors library refuses it ({problem})")
    except OSError as problem:
        raise VerifyError(f"cannot open: {first_line(problem)}", path=path) from problem
