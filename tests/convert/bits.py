"""What the library writes, and the comparison of bits."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.witness.checkpoints import same_bits


def library_bytes(tensors: dict[str, torch.Tensor], folder: Path) -> bytes:
    """What the safetensors library itself writes for these tensors."""
    path = folder / "library.safetensors"
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    content = path.read_bytes()
    path.unlink()
    return content


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name
