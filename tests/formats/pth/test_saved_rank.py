"""What torch.save could not have been given is refused before anything is laid out."""

from __future__ import annotations

from typing import Any

import pytest

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.saved_rank import SavedRank, SavedTensor, spare_spans
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype, TensorSpec


def tensor(
    name: str, shape: tuple[int, ...], storage: int = 0, offset: int = 0, dtype: Dtype = BFLOAT16
) -> SavedTensor:
    return SavedTensor(TensorSpec(name, dtype, shape), storage, offset)


def rank(*tensors: SavedTensor, elements: tuple[int, ...] = (6,), **how: Any) -> SavedRank:
    return SavedRank(tensors or (tensor("t", (2, 3)),), elements, **{"root": "rank", **how})


def refusal(refused: SavedRank) -> str:
    with pytest.raises(CheckpointError) as caught:
        lay_out(refused, "1.13")
    return str(caught.value)


@pytest.mark.parametrize(
    "root",
    ["", ".", "..", "a/b", "/", "a\\b", "a\nb", "a\0", "ä", "\x1b[2J", "x" * 256, "rank\n"],
)
def test_refuses_a_root_that_is_no_plain_folder(root: str) -> None:
    assert "inside a .pth file" in refusal(rank(root=root))


@pytest.mark.parametrize(
    "root", ["a", "...", "..a", "x" * 255, "consolidated.00", "a [b] ^~!", "-."]
)
def test_takes_any_other_root(root: str) -> None:
    body = lay_out(rank(root=root), "1.13").body([0])
    assert f"{root}/version".encode() not in b"".join(content for _, content in body)
    tail, head = lay_out(rank(root=root), "1.13").seal([0])
    assert head[1][30 : 30 + len(root)] == root.encode()
    assert tail[1].count(f"{root}/version".encode()) == 2


@pytest.mark.parametrize(
    "location",
    ["", "cuda:", "cuda:1000", "CUDA:0", "cuda:0\n", "cuda 0", "../cpu", "x" * 17, "cuda:a"],
)
def test_refuses_a_location_that_is_no_device(location: str) -> None:
    assert "is not a device" in refusal(rank(location=location))


@pytest.mark.parametrize("location", ["cpu", "cuda:0", "cuda:127", "mps", "npu:3"])
def test_takes_any_other_location(location: str) -> None:
    body = lay_out(rank(location=location), "1.13").body([0])
    assert len(location).to_bytes(4, "little") + location.encode() in body[0][1]


def test_refuses_a_container_that_torch_files_of_models_do_not_have() -> None:
    assert "'list'; expected one of dict, OrderedDict" in refusal(rank(container="list"))


def test_refuses_a_name_that_occurs_twice() -> None:
    twice = rank(tensor("a", (3,)), tensor("a", (3,), offset=3))
    assert refusal(twice) == "tensor 'a' occurs twice in one rank"
    lay_out(rank(tensor("a", (3,)), tensor("b", (3,), offset=3)), "1.13")


@pytest.mark.parametrize(
    ("offset", "n"), [(0, 7), (6, 1), (5, 2), (-1, 3), (-(2**70), 1), (2**70, 1)]
)
def test_refuses_a_tensor_that_leaves_its_storage(offset: int, n: int) -> None:
    said = refusal(rank(tensor("a", (n,), offset=offset)))
    assert f"'a' has the elements {offset} to {offset + n} of storage 0, which has 6" in said


@pytest.mark.parametrize(("offset", "n"), [(0, 6), (5, 1), (2, 3)])
def test_takes_a_tensor_that_stays_inside(offset: int, n: int) -> None:
    plan = lay_out(rank(tensor("a", (n,), offset=offset)), "1.13")
    ((start, end),) = plan.storage_spans
    assert (plan.tensor_offsets["a"], end) == (start + 2 * offset, start + 12)


@pytest.mark.parametrize(("shape", "elements"), [((0,), 6), ((2, 0), 6), ((0,), 0), ((-1, -1), 6)])
def test_refuses_what_is_empty(shape: tuple[int, ...], elements: int) -> None:
    said = refusal(rank(tensor("a", shape), elements=(elements,)))
    assert f"'a' of shape {shape}, in a storage of {elements} elements, is empty" in said


def test_refuses_storages_that_are_not_numbered_by_first_use() -> None:
    a, b = tensor("a", (3,), 0), tensor("b", (3,), 1)
    assert "'b' is in storage 1; expected at most 0" in refusal(rank(b, a, elements=(6, 6)))
    assert "'b' is in storage 1; expected at most 0" in refusal(rank(a, b, elements=(6,)))
    assert "'c' is in storage -1" in refusal(rank(a, tensor("c", (3,), -1)))
    lay_out(rank(a, b, elements=(6, 6)), "1.13")


def test_refuses_a_storage_that_no_tensor_uses() -> None:
    said = refusal(rank(tensor("a", (3,)), elements=(6, 6)))
    assert "has 2 storages, of which its tensors use 1" in said
    empty = SavedRank((), (), "rank")
    assert "has 0 storages, of which its tensors use 0" in refusal(empty)


def test_refuses_more_storages_than_a_file_may_have() -> None:
    assert "19991 storages; expected at most 19990" in refusal(rank(elements=(6,) * 19_991))
    most = [tensor(str(number), (1,), number) for number in range(19_990)]
    plan = lay_out(rank(*most, elements=(1,) * 19_990), "2.13")
    assert plan.pieces([0] * 19_990)[-1][0] == 0


def test_refuses_two_dtypes_in_one_storage() -> None:
    mixed = rank(tensor("a", (3,)), tensor("b", (3,), offset=3, dtype=FLOAT16))
    assert "'b' has dtype float16, but storage 0 holds bfloat16" in refusal(mixed)


def test_what_the_storages_hold_besides_is_found_in_order() -> None:
    """Before, between and behind the tensors; a tensor that is not named is beside them too."""
    saved = rank(
        tensor("a", (2, 3), offset=1),
        tensor("b", (2,), offset=9),
        tensor("c", (4,), storage=1, dtype=FLOAT32),
        tensor("d", (5,), storage=2),
        elements=(12, 4, 5),
    )
    assert spare_spans(saved, {"a", "b", "c", "d"}) == ((0, 0, 2), (0, 14, 18), (0, 22, 24))
    assert spare_spans(saved, {"a", "b", "d"}) == (
        (0, 0, 2), (0, 14, 18), (0, 22, 24), (1, 0, 16)
    )  # fmt: skip
    assert spare_spans(saved, {"d"}) == ((0, 0, 24), (1, 0, 16))


def test_tensors_that_overlap_have_nothing_between_them() -> None:
    saved = rank(tensor("a", (4,)), tensor("b", (3,), offset=3))
    with pytest.raises(ValueError, match="overlap"):
        spare_spans(saved, {"a", "b"})
    assert spare_spans(saved, {"b"}) == ((0, 0, 6),)
    beside = rank(tensor("a", (3,)), tensor("b", (3,), offset=3))
    assert spare_spans(beside, {"a", "b"}) == ()
