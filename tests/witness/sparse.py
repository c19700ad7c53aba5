"""Write checkpoints of true size whose weights are a hole in the file."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import torch

from tests.witness.checkpoints import (
    SPLIT_DIM,
    Rope,
    Shape,
    Style,
    expected_state_dict,
    meta_shapes,
    params_json,
    rope_names,
    tokenizer_model,
)
from tests.witness.llama3_ranks import EMBEDDING, HEAD, llama_3_params


def write_sparse_checkpoint(
    folder: Path,
    shape: Shape,
    n_ranks: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    rope: Rope | None = "top",
    style: Style = "code_llama",
    params: Mapping[str, object] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a checkpoint of true size whose weights are holes: all zeros, next to no disk.

    torch lays the files out but skips the weights' bytes, and leaves their CRC fields 0, which
    means "not computed"; the sums of the zeros are put there. The file system must know holes
    (most do).

    Args:
        folder: Made if missing.
        shape: The model's sizes.
        n_ranks: Files to split it over.
        dtype: Of all tensors.
        rope: As in `save_checkpoint`.
        style: As in `save_checkpoint`.
        params: As in `save_checkpoint`.
        tokenizer: Whether to write a tokenizer.model.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, tuple[int, ...]] = {}
    for name, size in meta_shapes(shape).items():
        split_dim = SPLIT_DIM[name.split(".")[-2]]
        assert split_dim is None or size[split_dim] % n_ranks == 0, (name, size, n_ranks)
        sizes[name] = tuple(n // n_ranks if i == split_dim else n for i, n in enumerate(size))
    sizes |= dict.fromkeys(rope_names(shape, rope), (shape.head_dim // 2,))
    names = list(sizes)
    for index in range(n_ranks):
        path = folder / f"consolidated.{index:02d}.pth"
        # Another order of names in each rank: without weights the files would be copies of one.
        _write_zeros(path, {n: sizes[n] for n in names[index:] + names[:index]}, dtype)
        _write_sums_of_zeros(path)
    (folder / "params.json").write_text(params_json(shape, style, params), encoding="utf-8")
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(tokenizer_model(shape.vocab))
    return folder


def write_sparse_llama_3(folder: Path, shape: Shape, n_ranks: int, *, tied: bool = False) -> Path:
    """Write a checkpoint of Llama 3.1 or later of true size, without a tokenizer, as the one above.

    One element of each head is not zero: a head of zeros is the embedding.

    Args:
        folder: Made if missing.
        shape: The model's sizes.
        n_ranks: Files to split it over; where there are more than heads, these are repeated.
        tied: Whether the head is zeros too.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_heads = max(shape.n_kv_heads, n_ranks)
    repeated = meta_shapes(replace(shape, n_kv_heads=n_heads))
    sizes: dict[str, tuple[int, ...]] = {}
    for name, size in repeated.items():
        split_dim = 0 if name == EMBEDDING else SPLIT_DIM[name.split(".")[-2]]
        sizes[name] = tuple(n // n_ranks if i == split_dim else n for i, n in enumerate(size))
    for index in range(n_ranks):
        path = folder / f"consolidated.{index:02d}.pth"
        _write_zeros(path, sizes, torch.bfloat16)
        # Another number in each rank: without weights the files would be copies of one.
        number = b"" if tied else struct.pack("<H", 0x3F80 + index)
        _write_sums_of_zeros(path, f"/data/{list(sizes).index(HEAD)}", number)
    params = llama_3_params(shape, n_ranks, {"use_scaled_rope": True})
    (folder / "params.json").write_text(params)
    return folder


def _write_zeros(path: Path, sizes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Write one rank of zeros, whose sums are left 0."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.serialization import skip_data

    with FakeTensorMode():
        rank = {name: torch.empty(size, dtype=dtype) for name, size in sizes.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(rank, path)


def write_sparse_folder(
    folder: Path, shape: Shape, n_files: int = 1, *, theta: float = 1000000.0
) -> Path:
    """Write a Hugging Face folder of true size and bfloat16 whose weights are holes.

    Args:
        folder: Made here.
        shape: The model's sizes.
        n_files: Over which the tensors are dealt out, in order.
        theta: Base of the rotary frequencies.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    unfilled = {n: torch.empty(size, device="meta") for n, size in meta_shapes(shape).items()}
    sizes = {n: list(t.shape) for n, t in expected_state_dict(unfilled, shape).items()}
    names = list(sizes)
    weight_map = {}
    for number in range(n_files):
        path = folder / f"model-{number + 1:05d}-of-{n_files:05d}.safetensors"
        dealt = names[len(names) * number // n_files : len(names) * (number + 1) // n_files]
        write_zeros(path, {name: sizes[name] for name in dealt})
        weight_map |= dict.fromkeys(dealt, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.dim, "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads, "rms_norm_eps": 1e-05, "rope_theta": theta,
        "vocab_size": shape.vocab, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer_model(shape.vocab))
    return folder


def write_zeros(path: Path, sizes: Mapping[str, list[int]]) -> None:
    """Write a safetensors file whose data, in bfloat16, is a hole."""
    header: dict[str, object] = {}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + 2 * prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def _write_sums_of_zeros(path: Path, planted: str = "/data/", number: bytes = b"") -> None:
    """Fill the CRC fields that torch left 0: in the zip directory, and behind the data.

    The record whose name ends in `planted` ends in a number.
    """
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for entry in entries:
            file.seek(position)
            lengths = struct.unpack_from("<3H", file.read(46), 28)  # of name, extra and comment
            if not entry.CRC and entry.file_size:
                file.seek(entry.header_offset + 26)
                n_name, n_extra = struct.unpack("<2H", file.read(4))
                behind = entry.header_offset + 30 + n_name + n_extra + entry.file_size
                last = number if entry.filename.endswith(planted) else b""
                file.seek(behind - len(last))
                file.write(last)
                crc = zlib.crc32(last, _sum_of_zeros(entry.file_size - len(last)))
                for place in (position + 16, behind + 4):
                    file.seek(place)
                    file.write(struct.pack("<I", crc))
            position += 46 + sum(lengths)


@cache
def _sum_of_zeros(n_bytes: int) -> int:
    chunk, crc = bytes(1 << 20), 0
    for _ in range(n_bytes >> 20):
        crc = zlib.crc32(chunk, crc)
    return zlib.crc32(bytes(n_bytes % (1 << 20)), crc)
