"""Own ranks that are larger than 4 GB and written for real, beside those that torch saves."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import torch

from codellama_convert import reverse_checkpoint
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.witness.checkpoints import Shape, meta_shapes
from tests.witness.ranks import expected_ranks, save_ranks
from tests.witness.sparse import write_sparse_folder

# 4.5 GB in one rank, all layers behind 4 GiB: it and the file of torch take 9 GB.
RANK_OVER_4_GB = Shape(dim=2048, n_layers=1, n_heads=16, n_kv_heads=16, hidden=2048, vocab=540_000)
# The embedding and the head have 4.3 GB each: it and the file of torch take 17.4 GB.
RECORDS_OVER_4_GB = replace(RANK_OVER_4_GB, vocab=1_050_000)
THETA = 1000000.0
_ROWS_OF_LLAMA_3 = 128_000  # from here on it is taken for one, whose loader refuses rope.freqs
_TENSORS = {
    "model.embed_tokens.weight": "tok_embeddings.weight", "lm_head.weight": "output.weight",
    "model.layers.0.mlp.down_proj.weight": "layers.0.feed_forward.w2.weight",
}  # fmt: skip
_ONE, _CHUNK_BYTES = struct.pack("<H", 0x3F80), 1 << 24


def differing_ranks(folder: Path, shape: Shape, *, plant: bool = True) -> list[str]:
    """Write one rank of a model of zeros and a few ones, and compare it with torch's.

    Args:
        folder: For everything.
        shape: Of the model.
        plant: Whether the source has the ones, too; it must, or the files differ.

    Returns:
        The names of the ranks that are not equal to torch's, byte for byte.
    """
    source = write_sparse_folder(folder / "in", shape, theta=THETA)
    # Never touched, zeros take no memory.
    state = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in meta_shapes(shape).items()}
    for name in _TENSORS.values():
        state[name][-1, -1] = 1.0
    if plant:
        _plant_ones(next(source.glob("*.safetensors")))
    options = ReverseOptions(n_ranks=1, torch_layout="2.13", skip_tokenizer=True)
    reverse_checkpoint(source, folder / "out", options=options)
    ranks = expected_ranks(state, shape, 1, theta=THETA)
    if shape.vocab >= _ROWS_OF_LLAMA_3:
        del ranks[0]["rope.freqs"]
    torchs = save_ranks(folder / "torchs", ranks)
    return [
        path.name for path in sorted(torchs.iterdir())
        if not _are_equal(path, folder / "out" / path.name)
    ]  # fmt: skip


def _plant_ones(path: Path) -> None:
    """Set the last element of some tensors."""
    with path.open("r+b") as file:
        (n_header,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(n_header))
        for name in _TENSORS:
            file.seek(8 + n_header + header[name]["data_offsets"][1] - len(_ONE))
            file.write(_ONE)


def _are_equal(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as file, other.open("rb") as its:
        while chunk := file.read(_CHUNK_BYTES):
            if chunk != its.read(_CHUNK_BYTES):
                return False
    return True
