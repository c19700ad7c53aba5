"""Own the safetensors header and the index file.

A header follows from names, dtypes and shapes alone, so it is known before the first byte of data
is. It equals the safetensors library's own, byte for byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

from codellama_convert.tensors import TensorSpec

# huggingface/safetensors README, "Format": an unsigned little-endian size, then JSON.
_HEADER_SIZE = struct.Struct("<Q")
_HEADER_ALIGNMENT = 8
# Loaders of transformers before 4.31 refuse a file that does not name its framework.
_METADATA = {"format": "pt"}

SINGLE_FILE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def encode_header(specs: Sequence[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Build a file's header and place its tensors.

    Args:
        specs: The file's tensors in any order; names are unique.

    Returns:
        The bytes in front of the data (size field and padding included), and each tensor's first
        byte's position in the file, in file order.

    Source:
        huggingface/safetensors tensor.rs `prepare`: the larger element first, then by name.
    """
    header: dict[str, object] = {"__metadata__": _METADATA}
    starts: dict[str, int] = {}
    position = 0
    for spec in sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name)):
        starts[spec.name] = position
        header[spec.name] = {
            "dtype": spec.dtype.code,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.n_bytes],
        }
        position += spec.n_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    encoded = _HEADER_SIZE.pack(len(text)) + text
    return encoded, {name: len(encoded) + start for name, start in starts.items()}


def shard_name(number: int, n_files: int) -> str:
    """Name an output file as transformers expects it.

    Args:
        number: From 1.
        n_files: How many there are.

    Returns:
        "model.safetensors" where it is the only one.
    """
    return SINGLE_FILE_NAME if n_files == 1 else f"model-{number:05d}-of-{n_files:05d}.safetensors"


def encode_index(weight_map: Mapping[str, str], total_bytes: int) -> bytes:
    """Build model.safetensors.index.json.

    Args:
        weight_map: Each tensor's file.
        total_bytes: Bytes of all tensors, headers not counted.

    Returns:
        The file's bytes, as transformers' `save_pretrained` lays them out.
    """
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
