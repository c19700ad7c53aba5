"""Views that are impossible or cost too much are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert.errors import CheckpointError
from tests.faults.hostile.rank_bytes import RankFile
from tests.formats.one_record import CONTIGUOUS, N_ELEMENTS, declared, rank_file, read
from tests.refusals import refused


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "fits"),
    [
        ((64,), (1,), 0, True),
        ((65,), (1,), 0, False),
        ((64,), (1,), 1, False),
        ((8, 8), (8, 1), 0, True),
        ((8, 8), (9, 1), 0, False),
        ((0, 8), (8, 1), 99, True),  # no element of it is anywhere
    ],
)
def test_a_view_ends_with_its_storage(
    tmp_path: Path, shape, strides, offset: int, *, fits: bool
) -> None:
    """The storage has 64 elements; the refusal names the file and asks for a sound copy of it."""
    rank = rank_file(declared(shape, strides, offset=offset))
    assert N_ELEMENTS == 64
    if fits:
        assert read(tmp_path, rank).tensors["t"].shape == shape
    else:
        with refused(
            CheckpointError, "rank.pth", "'t'", "out of bounds", "data/0", "; the file is damaged"
        ):
            read(tmp_path, rank)


@pytest.mark.parametrize(("shape", "strides"), [((8,), (0,)), ((2, 4), (0, 1)), ((4, 2), (1, 0))])
def test_an_expanded_view_is_refused(tmp_path: Path, shape, strides) -> None:
    with refused(CheckpointError, "rank.pth", "'t'", str(shape), "expanded", CONTIGUOUS):
        read(tmp_path, rank_file(declared(shape, strides)))
    plain = (shape[1], 1) if len(shape) == 2 else (1,)
    assert read(tmp_path, rank_file(declared(shape, plain))).tensors["t"].strides == plain


@pytest.mark.parametrize(("n_rows", "fits"), [(1 << 16, True), ((1 << 16) + 1, False)])
def test_a_scattered_matrix_counts_every_element_as_a_piece(
    tmp_path: Path, n_rows: int, *, fits: bool
) -> None:
    """Rows at even places, and between them the second column: 131,072 pieces at most."""
    n_elements = 2 * n_rows + 2
    rank = rank_file(
        declared((n_rows, 2), (2, 3), n_elements=n_elements), content=bytes(2 * n_elements)
    )
    if fits:
        assert read(tmp_path, rank).tensors["t"].order == "scattered"
    else:
        with refused(
            CheckpointError,
            "rank.pth",
            "'t'",
            f"({n_rows}, 2)",
            "(2, 3)",
            f"{2 * n_rows}",
            CONTIGUOUS,
        ):
            read(tmp_path, rank)


def columns(n_rows: int, n_columns: int, n_tensors: int, reach: int) -> RankFile:
    """Declare tensors of one storage whose columns lie far apart and interleave."""
    n_elements = n_columns * reach
    return rank_file(
        *(
            declared(
                (n_rows, n_columns), (1, reach), f"t{number}",
                n_elements=n_elements, offset=number * n_rows,
            )
            for number in range(n_tensors)
        ),
        content=bytes(2 * n_elements),
    )  # fmt: skip


@pytest.mark.parametrize(("n_tensors", "fits"), [(16, True), (17, False)])
def test_pieces_are_counted_over_all_tensors_of_a_file(
    tmp_path: Path, n_tensors: int, *, fits: bool
) -> None:
    """Each tensor stayed below the limit, and a file of 0.97 MB took 29 s to read."""
    rank = columns(2, 8192, n_tensors, 34)
    if fits:
        assert len(read(tmp_path, rank).tensors) == n_tensors
    else:
        facts = ("139264 pieces", "'t0'", "(2, 8192)", "(1, 34)", "8192 of them", CONTIGUOUS)
        with refused(CheckpointError, "rank.pth", *facts):
            read(tmp_path, rank)


def test_a_large_file_of_transposed_matrices_may_have_more_pieces(tmp_path: Path) -> None:
    """A piece for each KiB, as in a rank of 70B with 1,024 rows to a transposed matrix."""
    n_columns = (1 << 17) + 1
    for n_rows, fits in ((512, True), (500, False)):
        n_elements = n_rows * n_columns
        rank = rank_file(
            declared((n_rows, n_columns), (1, n_rows), n_elements=n_elements),
            content=bytes(2 * n_elements),
        )
        if fits:
            assert read(tmp_path, rank).tensors["t"].n_pieces == n_columns
        else:
            with refused(CheckpointError, "rank.pth", f"{n_columns} pieces", CONTIGUOUS):
                read(tmp_path, rank)


@pytest.mark.parametrize(("n_tensors", "fits"), [(8, True), (9, False)])
def test_the_same_bytes_are_read_so_many_times_at_most(
    tmp_path: Path, n_tensors: int, *, fits: bool
) -> None:
    """Views of one storage: 20 kB on disk, the rest a hole, cost 12.5 GB of reads."""
    n_elements = (64 << 20) // 2 // 8
    tensors = [
        declared((n_elements,), (1,), f"t{number}", n_elements=n_elements)
        for number in range(n_tensors)
    ]
    rank = rank_file(*tensors, content=bytes(2 * n_elements))
    if fits:
        assert len(read(tmp_path, rank).tensors) == 8
    else:
        facts = (f"{9 * 2 * n_elements} bytes would be read", f"of {2 * n_elements}", "'t0'")
        with refused(CheckpointError, "rank.pth", *facts, CONTIGUOUS):
            read(tmp_path, rank)


def test_what_lies_between_the_elements_is_counted_as_read(tmp_path: Path) -> None:
    n_elements = 4 << 20
    vectors = [
        declared((4,), (n_elements // 4 - 1,), f"t{number}", n_elements=n_elements)
        for number in range(20)
    ]
    index = read(tmp_path, rank_file(*vectors, content=bytes(2 * n_elements)))
    assert {tensor.read_bytes for tensor in index.tensors.values()} == {8}  # too far apart
    near = [
        declared((n_elements // 4,), (4,), f"t{number}", n_elements=n_elements)
        for number in range(9)
    ]
    with refused(CheckpointError, "rank.pth", "bytes would be read", "'t0'", CONTIGUOUS):
        read(tmp_path, rank_file(*near, content=bytes(2 * n_elements)))
    index = read(tmp_path, rank_file(*near[:7], content=bytes(2 * n_elements)))
    assert 0.99 < index.tensors["t0"].read_bytes / (2 * n_elements) <= 1
