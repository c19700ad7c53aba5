"""A safetensors file of any writer is read as the library reads it, or refused with the cause."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from codellama_convert.errors import CheckpointError, ConvertError
from codellama_convert.formats.safetensors_reader import SafetensorsIndex, read_safetensors
from tests.refusals import refused

NORM = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
GATE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}
DATA = bytes(range(32))


def write(path: Path, header: Any, data: bytes = DATA, padding: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def bytes_of(index: SafetensorsIndex, name: str) -> bytes:
    storage = index.storages[name]
    return index.path.read_bytes()[storage.offset : storage.offset + storage.n_bytes]


def test_what_the_library_writes_is_read_as_the_library_reads_it(path):
    torch.manual_seed(1)
    state = {
        "model.norm.weight": torch.randn(7, dtype=torch.float32),
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(4, 2, 3).to(torch.float16),
        "empty": torch.empty(0, 4, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "mask": torch.ones(3, dtype=torch.bool),
        "steps": torch.arange(3),
        "eight": torch.zeros(4).to(torch.float8_e4m3fn),
    }
    save_file(state, path, metadata={"format": "pt", "who": "somebody"})
    index = read_safetensors(path)
    assert index.other_dtypes == {"mask": "BOOL", "steps": "I64", "eight": "F8_E4M3"}
    kept = {"model.norm.weight", "b", "a", "empty", "scalar"}
    assert set(index.tensors) == set(index.storages) == kept
    with safe_open(path, framework="pt") as library:
        for name in kept:
            tensor = library.get_tensor(name)
            found = index.tensors[name]
            assert (found.name, found.shape) == (name, tuple(tensor.shape))
            assert found.dtype.name == str(tensor.dtype).removeprefix("torch.")
            assert (found.strides, found.storage_offset) == (tensor.stride(), 0)
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert bytes_of(index, name) == raw
            assert index.storages[name].crc is None
    status = path.stat()
    assert (index.n_bytes, index.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert index.inode == (status.st_dev, status.st_ino)


@pytest.mark.parametrize("padding", [b"", b" ", b"     ", b"\n\t ", b" " * 100_000])
@pytest.mark.parametrize("metadata", [{}, None, {"format": "mlx", "notes": "[{,"}])
def test_any_order_metadata_and_padding_are_read(path, padding, metadata):
    """Positions that are not multiples of 8 or of the element's size are legal in the format."""
    write(path, {"gate": GATE, "__metadata__": metadata, "norm": NORM}, padding=padding)
    index = read_safetensors(path)
    assert list(index.tensors) == ["norm", "gate"]
    assert bytes_of(index, "norm") == bytes(range(8))
    assert bytes_of(index, "gate") == bytes(range(8, 32))
    assert index.tensors["gate"].strides == (3, 1)


def test_the_header_has_a_digest_and_the_data_has_no_part_in_it(path):
    first = read_safetensors(write(path, {"norm": NORM, "gate": GATE})).header_sha256
    again = read_safetensors(write(path, {"norm": NORM, "gate": GATE}, DATA[::-1])).header_sha256
    other = read_safetensors(write(path, {"mark": NORM, "gate": GATE})).header_sha256
    assert first == again != other


@pytest.mark.parametrize(
    ("header", "facts"),
    [
        ({"norm": NORM, "gate": GATE | {"data_offsets": [4, 28]}}, ["'gate'", "byte 4", "'norm'", "at 8"]),
        ({"norm": NORM, "gate": NORM}, ["begins at byte 0", "which ends at 8"]),
        ({"gate": GATE}, ["bytes 0 to 8", "belong to no tensor"]),
        ({"norm": NORM}, ["bytes 8 to 32", "belong to no tensor"]),
        ({}, ["bytes 0 to 32", "belong to no tensor"]),
        ({"norm": NORM, "gate": GATE | {"shape": [2, 4], "data_offsets": [8, 40]}}, ["32 bytes of data", "40", "truncated"]),
        ({"norm": NORM, "gate": GATE | {"shape": [3, 3]}}, ["'gate'", "24 bytes", "(3, 3)", "F32", "36"]),
        ({"norm": NORM | {"data_offsets": [8, 0]}}, ["'norm'", "-8 bytes"]),
        ({"norm": NORM | {"data_offsets": [0, 1 << 63]}}, ["data_offsets"]),
        ({"norm": NORM | {"data_offsets": [-8, 0]}}, ["data_offsets"]),
        ({"norm": NORM | {"data_offsets": [0.0, 8]}}, ["data_offsets"]),
        ({"norm": NORM | {"data_offsets": [False, 8]}}, ["data_offsets"]),
        ({"norm": NORM | {"data_offsets": [0, 4, 8]}}, ["data_offsets"]),
        ({"norm": NORM | {"shape": [-4]}}, ["shape"]),
        ({"norm": NORM | {"shape": [1] * 9}}, ["shape"]),
        ({"norm": NORM | {"shape": 4}}, ["shape"]),
        ({"norm": NORM | {"shape": [1 << 62, 1 << 62]}}, ["'norm'", "8 bytes"]),
        ({"norm": NORM | {"dtype": "BF17"}}, ["'norm'", "unknown dtype 'BF17'"]),
        ({"norm": NORM | {"dtype": ["BF16"]}}, ["unknown dtype"]),
        ({"norm": NORM | {"dtype": "F4", "shape": [3]}}, ["8 bytes", "takes 2"]),
        ({"norm": NORM | {"crc": 7}}, ["'norm'", "unexpected form"]),
        ({"norm": {"dtype": "BF16"}}, ["unexpected form"]),
        ({"norm": [0, 8]}, ["unexpected form"]),
        ({"norm": NORM, "__metadata__": {"a": 1}}, ["__metadata__"]),
        ({"norm": NORM, "__metadata__": "pt"}, ["__metadata__"]),
        (b'{"norm": {}, "norm": {}}', ["a key occurs twice"]),
        (b'{"norm": NaN}', ["NaN"]),
        (b'{"norm": ' + b"[" * 100_000, ["not JSON"]),
        (b'{"norm"', ["not JSON"]),
        (b'{"\xff": 1}', ["not JSON"]),
    ],
)  # fmt: skip
def test_a_wrong_header_is_refused_with_the_cause(path, header, facts):
    write(path, {"norm": NORM, "gate": GATE})
    read_safetensors(path)
    write(path, header)
    with refused(CheckpointError, "model.safetensors", *facts):
        read_safetensors(path)


def test_a_truncated_file_is_refused_wherever_it_ends(path):
    whole = write(path, {"norm": NORM, "gate": GATE}).read_bytes()
    read_safetensors(path)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_safetensors(path)
    path.write_bytes(whole + b"\0")
    with refused(CheckpointError, "bytes 32 to 33"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["not a safetensors file"]),
        (bytes(600), ["not a safetensors file"]),
        (b"<!doctype html><html>", ["HTML", "login"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["LFS", "git lfs pull"]),
        (b"PK\x03\x04" + bytes(600), ["zip file"]),
        (b"GGUF\x03\0\0\0{" + bytes(600), ["GGUF"]),
        (b"\xff" * 8 + b"{}", ["not a safetensors file"]),
        ((100_000_001).to_bytes(8, "little") + b"{}", ["not a safetensors file"]),
        ((100_000_000).to_bytes(8, "little") + b"{}", ["100000000 bytes", "too large"]),
        (((4 << 20) + 1).to_bytes(8, "little") + b"{}", ["too large"]),
        ((4 << 20).to_bytes(8, "little") + b"{}", ["10 bytes", "truncated"]),
    ],
)
def test_a_file_of_another_kind_is_named(path, content, facts):
    path.write_bytes(content)
    with refused(CheckpointError, "model.safetensors", *facts):
        read_safetensors(path)


def test_a_forged_header_takes_bounded_memory(path):
    """As many values as JSON packs into a quarter of the largest header; four times it is 160 MB."""
    write(path, b'{"a":[' + b"[]," * ((1 << 20) // 3 - 8) + b"[]]}", b"")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_safetensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_mutated_header_is_refused_or_means_what_the_library_reads(tmp_path_factory, seed):
    chance = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    whole = bytearray(write(path, {"norm": NORM, "gate": GATE}, padding=b"  ").read_bytes())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(whole))
        piece = chance.choice(
            [b"", b"0", b"9", b"-", b"[", b'"', b"{}", b"1e9", bytes([chance.randrange(256)])]
        )
        whole[at : at + chance.randint(0, 2)] = piece
    path.write_bytes(whole)
    try:
        index = read_safetensors(path)
    except ConvertError:
        return
    try:
        with safe_open(path, framework="numpy") as library:
            names = set(library.keys())
    except SafetensorError as problem:
        pytest.fail(f"read what the library refuses: {problem}")
    assert names == set(index.tensors) | set(index.other_dtypes)
