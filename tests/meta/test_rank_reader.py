"""Rows of any view are read right, each byte of a storage once, and every flipped bit is seen."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codellama_convert.errors import CheckpointError
from codellama_convert.formats import stored_tensor
from codellama_convert.formats.pth.reader import RankIndex, read_rank
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.watch import Watch
from tests.faults.hostile.rank_bytes import Declared, RankFile
from tests.faults.hostile.zip_bytes import write_zip

N_ELEMENTS = 700
CONTENT = random.Random(4).randbytes(2 * N_ELEMENTS)


def places(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> list[int]:
    """List the elements of a view in its order."""
    elements = [offset]
    for size, step in zip(shape, strides, strict=True):
        elements = [at + i * step for at in elements for i in range(size)]
    return elements


def write_rank(path: Path, views: list[Declared], content: bytes = CONTENT) -> RankIndex:
    members = RankFile(views, {"data/0": content}).members()
    path.write_bytes(write_zip(members))
    return read_rank(path)


def read_all(index: RankIndex, tile_rows: int, order: random.Random) -> dict[str, bytes]:
    """Read every tensor tile by tile, the tiles of all of them in random order, then the rest."""
    found: dict[str, dict[int, bytes]] = {name: {} for name in index.tensors}
    tiles = [
        (name, row, min(tile_rows, tensor.shape[0] - row))
        for name, tensor in index.tensors.items()
        for row in range(0, tensor.shape[0], tile_rows)
    ]
    order.shuffle(tiles)
    buffer = aligned_buffer(2 * N_ELEMENTS)
    with RankReader(index, list(index.tensors)) as reader:
        for name, row, n_rows in tiles:
            found[name][row] = reader.read_rows(name, row, n_rows, buffer)[0].tobytes()
        reader.finish(buffer, Watch())
    return {name: b"".join(rows[row] for row in sorted(rows)) for name, rows in found.items()}


@st.composite
def views(draw: st.DrawFn) -> list[Declared]:
    """Draw views of one storage whose elements are distinct; they may overlap each other."""
    drawn = []
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=2)))
        strides = tuple(draw(st.integers(1, 40)) for _ in shape)
        offset = draw(st.integers(0, 60))
        elements = places(shape, strides, offset)
        assume(max(elements) < N_ELEMENTS and len(set(elements)) == len(elements))
        drawn.append(Declared(f"t{number}", "0", N_ELEMENTS, shape, strides, offset))
    return drawn


@settings(max_examples=150, deadline=None)
@given(
    drawn=views(),
    tile_rows=st.integers(1, 12),
    limit=st.sampled_from((2, 20, 200, 1 << 20)),
    seed=st.integers(0, 99),
)
def test_any_views_are_read_right_in_any_tiles(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[Declared],
    tile_rows: int,
    limit: int,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("views") / "rank.pth"
    index = write_rank(path, drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tensor, "_MAX_SEGMENT_BYTES", limit)
        found = read_all(index, tile_rows, random.Random(seed))
    for view in drawn:
        elements = places(view.shape, view.strides, view.offset)
        assert found[view.name] == b"".join(CONTENT[2 * at : 2 * at + 2] for at in elements)


@settings(max_examples=60, deadline=None)
@given(drawn=views(), bit=st.integers(0, 16 * N_ELEMENTS - 1))
def test_a_flipped_bit_anywhere_in_the_storage_is_seen(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Declared], bit: int
) -> None:
    """Also in bytes that no tensor is made of: the CRC-32 is of the whole record."""
    path = tmp_path_factory.mktemp("views") / "rank.pth"
    index = write_rank(path, drawn)
    at = index.storages["data/0"].offset + bit // 8
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit % 8
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"storage data/0 \(tensor 't[^']*'\): CRC-32 mismatch"
    ):
        read_all(read_rank(path), 3, random.Random(1))


def test_a_rank_that_changed_since_it_was_looked_at_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank.pth"
    index = write_rank(path, [Declared("t", "0", N_ELEMENTS, (N_ELEMENTS,), (1,))])
    write_rank(path, [Declared("t", "0", N_ELEMENTS, (N_ELEMENTS,), (1,))], bytes(2 * N_ELEMENTS))
    with pytest.raises(CheckpointError, match="changed"):
        RankReader(index, ["t"])


def test_thousands_of_views_of_one_storage_cost_one_more_reading(tmp_path: Path) -> None:
    """Each has a sum of its own; reading the whole storage for each would take hours."""
    n_elements, n_views = 4 << 20, 1500
    content = bytes(2 * n_elements)
    drawn = [
        Declared(f"t{n}", "0", n_elements, (2,), (n_elements - 1 - n,), n // 2)
        for n in range(n_views)
    ]
    index = write_rank(tmp_path / "rank.pth", drawn, content)
    began = time.process_time()
    found = read_all(index, 2, random.Random(2))
    assert set(found.values()) == {bytes(4)}
    assert time.process_time() - began < 20  # 12 GB would have to be read


def test_many_neighbours_in_one_storage_are_assigned_quickly(tmp_path: Path) -> None:
    n_views = 7000
    drawn = [Declared(f"t{n}", "0", 2 * n_views, (2,), (1,), 2 * n) for n in range(n_views)]
    index = write_rank(tmp_path / "rank.pth", drawn, bytes(4 * n_views))
    began = time.process_time()
    with RankReader(index, list(index.tensors)) as reader:
        assert {*reader._pass_of.values()} == {0}
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("shape", "strides", "order"),
    [
        ((4, 8), (8, 1), "rows"),
        ((4, 8), (9, 1), "rows"),
        ((4, 8), (1, 4), "columns"),
        ((4, 8), (2, 9), "columns"),
        ((4, 8), (8, 9), "scattered"),
        ((1, 8), (999, 1), "rows"),
        ((8, 1), (1, 999), "rows"),
        ((1, 1), (999, 999), "rows"),
        ((8,), (3,), "rows"),
    ],
)
def test_a_view_knows_what_lies_apart(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], order: str
) -> None:
    index = write_rank(tmp_path / "rank.pth", [Declared("t", "0", N_ELEMENTS, shape, strides)])
    assert index.tensors["t"].order == order


@pytest.mark.parametrize(("n_columns", "fits"), [(1 << 17, True), ((1 << 17) + 1, False)])
def test_a_matrix_in_too_many_pieces_is_refused(
    tmp_path: Path, n_columns: int, *, fits: bool
) -> None:
    """Each piece costs a read and some memory; contiguous ones of that size are read."""
    content = bytes(4 * n_columns)
    straight = Declared("t", "0", 2 * n_columns, (2, n_columns), (n_columns, 1))
    assert write_rank(tmp_path / "a.pth", [straight], content).tensors["t"].order == "rows"
    transposed = Declared("t", "0", 2 * n_columns, (2, n_columns), (1, 2))
    if fits:
        assert write_rank(tmp_path / "b.pth", [transposed], content).tensors["t"].order == "columns"
    else:
        with pytest.raises(CheckpointError, match="contiguous"):
            write_rank(tmp_path / "b.pth", [transposed], content)


def test_the_oracle_of_places_is_torchs() -> None:
    flat = torch.arange(N_ELEMENTS)
    view = torch.as_strided(flat, (3, 5), (7, 2), 4)
    assert view.flatten().tolist() == places((3, 5), (7, 2), 4)
