"""Ranks as torch.save is given them, described for the rank writer, and the files that it lays out."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from codellama_convert.choices import TorchLayout
from codellama_convert.formats.pth.saved_rank import SavedRank, SavedTensor
from codellama_convert.formats.pth.writer import RankFilePlan, lay_out
from codellama_convert.tensors import TensorSpec, dtype_named

State = Mapping[str, torch.Tensor]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def described(state: State, root: str = "archive", **how: Any) -> SavedRank:
    """Say what torch.save is given, from torch's own objects."""
    numbers: dict[int, int] = {}
    elements = []
    tensors = []
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        if storage._cdata not in numbers:
            numbers[storage._cdata] = len(numbers)
            elements.append(storage.nbytes() // tensor.element_size())
        spec = TensorSpec(name, dtype_named(str(tensor.dtype)), tuple(tensor.shape))
        tensors.append(SavedTensor(spec, numbers[storage._cdata], tensor.storage_offset()))
    return SavedRank(tuple(tensors), tuple(elements), root, **how)


def data_of(state: State) -> list[bytes]:
    """Read the bytes of each storage, in order of first use."""
    found = {}
    for tensor in state.values():
        storage = tensor.untyped_storage()
        if storage._cdata not in found:
            found[storage._cdata] = (
                torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
            )
    return list(found.values())


def filled(plan: RankFilePlan, data: list[bytes], *, sealed: bool = True) -> bytes:
    """Write a file as a conversion does: data, body, seal. Every byte is written exactly once."""
    crcs = [zlib.crc32(content) for content in data]
    written = [
        (start, content) for (start, _), content in zip(plan.storage_spans, data, strict=True)
    ]
    written += plan.body(crcs)
    assert plan.pieces(crcs) == (*plan.body(crcs), *plan.seal(crcs))
    ends = sorted((start, start + len(content)) for start, content in (*written, *plan.seal(crcs)))
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
    assert ends[-1][1] == plan.n_bytes
    file = bytearray(plan.n_bytes)
    for start, content in (*written, *(plan.seal(crcs) if sealed else ())):
        file[start : start + len(content)] = content
    return bytes(file)


def ours(state: State, layout: TorchLayout, root: str = "archive", **how: Any) -> bytes:
    return filled(lay_out(described(state, root, **how), layout), data_of(state))


def saved(path: Path, state: State) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


def listed_crcs(path: Path, root: str, n_storages: int) -> list[int]:
    """Read what torch listed as CRC-32 of each storage."""
    with zipfile.ZipFile(path) as archive:
        return [archive.getinfo(f"{root}/data/{key}").CRC for key in range(n_storages)]


@contextmanager
def saving_from_a_gpu() -> Iterator[None]:
    """Let torch say that each storage is of a GPU, as it does where there is one."""
    registry = torch.serialization._package_registry
    before = list(registry)
    index = 0
    torch.serialization.register_package(1, lambda _: "cuda:" + str(index), lambda *_: None)
    try:
        yield
    finally:
        registry[:] = before


def mixed(n_tensors: int) -> State:
    """Vectors and matrices of all dtypes in turn."""
    torch.manual_seed(n_tensors)
    shapes = ((7,), (3, 5), (1, 1), (300, 2))
    return {
        f"layers.{number}.weight": torch.randn(shapes[number % 4]).to(DTYPES[number % 3])
        for number in range(n_tensors)
    }


def load(path: Path | io.BytesIO, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of storages without a type
        return torch.load(path, weights_only=True, **how)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
