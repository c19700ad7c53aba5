"""Behind 4 GiB a zip archive has other fields, and the rank writer's are PyTorch's.

PyTorch saves without data here (`skip_data`), into sparse files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from codellama_convert.formats.pth.saved_rank import own_storages
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.tensors import BFLOAT16, TensorSpec, dtype_named

LIMIT = 0xFFFFFFFF  # what a field of 32 bits says where the number stands elsewhere
Sizes = Sequence[tuple[torch.dtype, tuple[int, ...]]]


def save_without_data(path: Path, sizes: Sizes) -> list[zipfile.ZipInfo]:
    """Save tensors that are never filled; return what the file lists."""
    state = {
        f"t{number}": torch.empty(shape, dtype=dtype) for number, (dtype, shape) in enumerate(sizes)
    }
    with torch.serialization.skip_data():
        torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def require_same(path: Path, sizes: Sizes, listed: list[zipfile.ZipInfo]) -> None:
    """Compare everything but the data with a file of PyTorch's."""
    crc_of = {entry.filename: entry.CRC for entry in listed}
    specs = [
        TensorSpec(f"t{number}", dtype_named(str(dtype)), shape)
        for number, (dtype, shape) in enumerate(sizes)
    ]
    plan = lay_out(own_storages(specs, root="rank"), "2.13")
    assert path.stat().st_size == plan.n_bytes
    pieces = plan.pieces([crc_of[f"rank/data/{key}"] for key in range(len(sizes))])
    spans = [(start, start + len(content)) for start, content in pieces]
    ends = sorted([*spans, *plan.storage_spans])
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]
    with path.open("rb") as file:
        for start, content in pieces:
            file.seek(start)
            assert file.read(len(content)) == content, f"differs behind byte {start}"


def header_of(listed: list[zipfile.ZipInfo], name: str) -> int:
    (found,) = [entry.header_offset for entry in listed if entry.filename == f"rank/{name}"]
    return found


@pytest.mark.parametrize("size", [LIMIT - 3, LIMIT - 1, LIMIT + 1, LIMIT + 3])
def test_an_entry_about_as_large_as_4_gib_is_torchs_own(tmp_path: Path, size: int) -> None:
    """Those behind it are listed with wide offsets, and have wide descriptors."""
    sizes = [(torch.float32, (9,)), (torch.bfloat16, (size // 2,)), (torch.float16, (3, 3))]
    path = tmp_path / "rank.pth"
    listed = save_without_data(path, sizes)
    assert [entry.file_size for entry in listed if "/data/" in entry.filename][1] == size
    require_same(path, sizes, listed)


@pytest.mark.parametrize("distance", range(-7, 8, 2))
def test_a_header_about_at_4_gib_is_torchs_own(tmp_path: Path, distance: int) -> None:
    """Data begins at multiples of 64 and elements have two bytes, so headers begin at even ones."""
    path = tmp_path / "rank.pth"
    half = (torch.bfloat16, (1 << 30, 1))
    guessed = header_of(save_without_data(path, [half, half, half]), "data/2")
    n_left = (1 << 30) + (LIMIT + distance - guessed) // 2
    sizes = [half, (torch.bfloat16, (n_left, 1)), half]
    listed = save_without_data(path, sizes)
    assert header_of(listed, "data/2") == LIMIT + distance
    require_same(path, sizes, listed)


def test_one_row_more_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "rank.pth"
    sizes = [(torch.bfloat16, (1 << 31, 2)), (torch.bfloat16, (64, 32))]
    listed = save_without_data(path, sizes)
    require_same(path, sizes, listed)
    for shape in ((65, 32), (32, 64)):
        with pytest.raises(AssertionError):
            require_same(path, [sizes[0], (torch.bfloat16, shape)], listed)


def test_a_rank_of_70b_at_true_size_is_torchs_own(tmp_path: Path) -> None:
    """17 GB, 80 layers, 724 tensors."""
    layer = [(1024, 8192), (128, 8192), (128, 8192), (8192, 1024), (3584, 8192), (8192, 3584),
             (3584, 8192), (8192,), (8192,)]  # fmt: skip
    shapes = [(32000, 1024), (8192,), (4000, 8192), (64,), *layer * 80]
    sizes = [(torch.bfloat16, shape) for shape in shapes]
    path = tmp_path / "rank.pth"
    listed = save_without_data(path, sizes)
    assert path.stat().st_size > 17_000_000_000
    require_same(path, sizes, listed)


def llama(
    n_layers: int, attention: tuple[int, int, int], width: int, vocabulary: tuple[int, int, int]
) -> list[TensorSpec]:
    """Spell what one of Meta's ranks holds, in the order of Llama 2's files."""
    (hidden, queries, keys), (n_pieces, columns, rows) = attention, vocabulary
    top = {
        "tok_embeddings.weight": (n_pieces, columns),
        "norm.weight": (hidden,),
        "output.weight": (rows, hidden),
        "rope.freqs": (64,),
    }
    layer = {
        "attention.wq": (queries, hidden),
        "attention.wk": (keys, hidden),
        "attention.wv": (keys, hidden),
        "attention.wo": (hidden, queries),
        "feed_forward.w1": (width, hidden),
        "feed_forward.w2": (hidden, width),
        "feed_forward.w3": (width, hidden),
        "attention_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    shapes = top | {
        f"layers.{number}.{name}.weight": shape
        for number in range(n_layers)
        for name, shape in layer.items()
    }
    return [TensorSpec(name, BFLOAT16, shape) for name, shape in shapes.items()]


LLAMA_2_7B = llama(32, (4096, 4096, 4096), 11008, (32000, 4096, 32000))
LLAMA_2_70B_RANK = llama(80, (8192, 1024, 128), 3584, (32000, 1024, 4000))


@pytest.mark.parametrize(
    ("specs", "root", "n_bytes"),
    [
        # Listings of Llama-2-7b and Llama-2-7b-chat; saved as consolidated.pth, and renamed.
        (LLAMA_2_7B, "consolidated", 13_476_925_163),
        # Rank 0 of Llama-2-70b, from the log of a download.
        (LLAMA_2_70B_RANK, "consolidated.00", 17_246_706_245),
    ],
)
def test_metas_files_have_exactly_this_size(
    specs: list[TensorSpec], root: str, n_bytes: int
) -> None:
    assert lay_out(own_storages(specs, root=root), "1.13").n_bytes == n_bytes
    assert lay_out(own_storages(specs, root=root), "2.13").n_bytes != n_bytes
    without_freqs = [spec for spec in specs if spec.name != "rope.freqs"]
    assert lay_out(own_storages(without_freqs, root=root), "1.13").n_bytes != n_bytes
