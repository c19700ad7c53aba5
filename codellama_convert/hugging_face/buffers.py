"""Own the buffers that older versions of transformers saved beside the weights.

They follow from config.json, so they are dropped; frequencies that do not follow from it show that
the model was trained with others.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import read_vector
from codellama_convert.formats.stored_tensor import StoredTensor
from codellama_convert.model.config import ModelConfig
from codellama_convert.storage.input_file import InputFile

# transformers before 4.32 saved the first; the second is of even older exports.
_FREQUENCIES = re.compile(r"(?:.*\.)?inv_freq")
_MASK = re.compile(r"(?:.*\.)?masked_bias")
# The relative error that rounding may leave, by itemsize: of float32 arithmetic, of a 16-bit format.
_ROUNDING = {4: 1e-5, 2: 2.0**-7}


def is_buffer(name: str) -> bool:
    """Report whether a tensor is a buffer that is dropped."""
    return is_mask(name) or _FREQUENCIES.fullmatch(name) is not None


def is_mask(name: str) -> bool:
    """Report whether a tensor is a mask, whose values and dtype do not matter."""
    return _MASK.fullmatch(name) is not None


def check_frequencies(path: Path, tensor: StoredTensor, config: ModelConfig) -> None:
    """Compare saved rotary frequencies with those that rope_theta gives; ignore other buffers.

    Args:
        path: The file.
        tensor: One of its tensors.
        config: The model.

    Raises:
        LayoutError: If they differ.

    Source:
        transformers modeling_rope_utils.py, `_compute_default_rope_parameters`.
    """
    if not _FREQUENCIES.fullmatch(tensor.name):
        return
    hint = "config.json and the weights must belong to the same model"
    n_pairs = config.head_dim // 2
    if tensor.shape != (n_pairs,):
        raise LayoutError(
            f"tensor {tensor.name!r} has shape {tensor.shape}, expected {(n_pairs,)}",
            path=path,
            hint=hint,
        )
    with InputFile(path) as file:
        raw = read_vector(file, tensor)
    for at, found in enumerate(_values(raw, tensor)):
        wanted = config.rope_theta ** (-at / n_pairs)
        tolerance = wanted * _ROUNDING[tensor.dtype.itemsize] + tensor.dtype.min_positive
        if not abs(found - wanted) <= tolerance:  # a NaN is wrong too
            raise LayoutError(
                f"tensor {tensor.name!r} has {found:.6g} at {at}, but rope_theta "
                f"{config.rope_theta:g} gives {wanted:.6g}",
                path=path,
                hint=hint,
            )


def _values(raw: bytes, tensor: StoredTensor) -> tuple[float, ...]:
    """Read a vector's numbers."""
    if tensor.dtype.code == "BF16":  # the upper half of a float32
        raw = b"".join(bytes(2) + raw[at : at + 2] for at in range(0, len(raw), 2))
    code = "e" if tensor.dtype.code == "F16" else "f"
    return struct.unpack(f"<{tensor.shape[0]}{code}", raw)
