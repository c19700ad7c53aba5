"""What is refused of one tensor that a pickle declares, whatever the others are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from tests.faults.hostile.rank_bytes import p_dict, p_int, p_pickle, p_str
from tests.formats.one_record import METAS, declared, rank_file, read
from tests.refusals import refused


@pytest.mark.parametrize(("length", "fits"), [(256, True), (257, False)])
def test_a_name_has_so_many_characters_at_most(tmp_path: Path, length: int, *, fits: bool) -> None:
    rank = rank_file(declared((64,), (1,), "n" * length))
    if fits:
        assert list(read(tmp_path, rank).tensors) == ["n" * length]
    else:
        with refused(CheckpointError, "rank.pth", f"{length} characters", METAS):
            read(tmp_path, rank)


@pytest.mark.parametrize(("n_dimensions", "fits"), [(8, True), (9, False)])
def test_a_tensor_has_so_many_dimensions_at_most(
    tmp_path: Path, n_dimensions: int, *, fits: bool
) -> None:
    rank = rank_file(declared((1,) * n_dimensions, (1,) * n_dimensions))
    if fits:
        assert read(tmp_path, rank).tensors["t"].shape == (1,) * n_dimensions
    else:
        invalid = "invalid shape, stride or storage offset; the file is damaged"
        with refused(CheckpointError, "rank.pth", "'t'", invalid):
            read(tmp_path, rank)


@pytest.mark.parametrize(
    ("number", "fact"),
    [((1 << 64) - 1, "out of bounds"), (1 << 64, "(an integer of more than 64 bits); ")],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_integer_that_is_too_large_is_named_wherever_it_stands(
    tmp_path: Path, place: int, number: int, fact: str
) -> None:
    """As the shape, the stride or the offset; of 64 bits, it is a number that leads too far."""
    numbers = [64, 1, 0]
    numbers[place] = number
    size, step, offset = numbers
    with refused(CheckpointError, "rank.pth", "'t'", fact):
        read(tmp_path, rank_file(declared((size,), (step,), offset=offset)))


def test_a_key_that_is_not_a_text_is_named(tmp_path: Path) -> None:
    """Trainers number what they save, Meta does not; the same digit as a text is a name."""
    (tensor,) = rank_file(declared((64,), (1,))).tensors
    number, text = (p_pickle(p_dict([(key, tensor.pickled())])) for key in (p_int(7), p_str("7")))
    with refused(CheckpointError, "rank.pth", "dict key 7 ", METAS):
        read(tmp_path, rank_file(), number)
    assert list(read(tmp_path, rank_file(), text).tensors) == ["7"]


def test_a_dtype_that_no_model_has_is_named_beside_those_that_are_read(tmp_path: Path) -> None:
    facts = ("rank.pth", "'t'", "DoubleStorage", "bfloat16, float16 or float32", METAS)
    with refused(CheckpointError, *facts):
        read(tmp_path, rank_file(declared((16,), (1,), n_elements=16, storage="DoubleStorage")))
    assert read(tmp_path, rank_file(declared((16,), (1,)))).tensors["t"].shape == (16,)


def test_a_tensor_of_another_dtype_is_told_with_its_own_hint(tmp_path: Path) -> None:
    """Weights of 8 bits are quantised, and the hint asks for those that they were made from."""
    path = tmp_path / "rank.pth"
    torch.save({"t": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    facts = ("entry 't' is ", "float8_e4m3fn", "expected plain bfloat16", "quantised weights")
    with refused(CheckpointError, "rank.pth", *facts):
        read_rank(path)
    torch.save({"t": torch.zeros(2, dtype=torch.float16)}, path)
    assert list(read_rank(path).tensors) == ["t"]
