"""The rank writer's files are torch.save's own, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from codellama_convert.formats.pth.saved_rank import (
    SavedRank,
    SavedTensor,
    own_storages,
)
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.tensors import BFLOAT16, FLOAT32, TensorSpec
from tests.formats.pth.saved_ranks import (
    State,
    data_of,
    described,
    load,
    mixed,
    ours,
    saved,
    saving_from_a_gpu,
)
from tests.witness.old_torch import save_as_old_torch

OLD_TORCH = Path(__file__).parents[4] / "shared" / "data" / "old-torch"


def views() -> State:
    """Two storages, used in turn at offsets, with elements that no tensor has."""
    flat, other = torch.randn(70_000).bfloat16(), torch.randn(9)
    return {
        "late": flat[65_536:65_545].view(3, 3),
        "other": other[2:],
        "early": flat[5:9],
        "whole": flat,
        "element": other[8],
    }


@pytest.mark.parametrize("n_tensors", [1, 2, 11, 300, 999, 1000, 1001, 2500])
def test_a_file_of_so_many_tensors_is_torchs_own(tmp_path: Path, n_tensors: int) -> None:
    """Batches of the pickle end after 1000 items, and a set of names grows at 13, 29, 59, ..."""
    state = mixed(n_tensors)
    assert ours(state, "2.13", "rank") == saved(tmp_path / "rank.pth", state)


@pytest.mark.parametrize("n_tensors", [1, 2, 1000, 1001])
def test_an_ordered_dict_ends_its_batches_otherwise(tmp_path: Path, n_tensors: int) -> None:
    state = OrderedDict(mixed(n_tensors))
    expected = saved(tmp_path / "rank.pth", state)
    assert ours(state, "2.13", "rank", container="OrderedDict") == expected
    assert ours(state, "2.13", "rank") != expected


def test_views_of_one_storage_are_torchs_own(tmp_path: Path) -> None:
    state = views()
    expected = saved(tmp_path / "rank.pth", state)
    assert ours(state, "2.13", "rank") == expected
    copies = {name: tensor.clone() for name, tensor in state.items()}
    assert ours(copies, "2.13", "rank") != expected


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 3, 4), (2, 1, 3, 1), (1, 2, 3, 4, 5)])
def test_any_shape_is_torchs_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = {"t": torch.ones(shape)}
    assert ours(state, "2.13", "rank") == saved(tmp_path / "rank.pth", state)


@pytest.mark.parametrize(
    ("file", "root"),
    [
        ("consolidated.00.pth", "consolidated.00"),
        ("consolidated.pth", "consolidated"),
        ("no suffix", "no suffix"),
        ("a.b-c.d.pth", "a.b-c.d"),
        (f"{'x' * 200}.pth", "x" * 200),
        ("Gewicht_ä.pth", "archive"),
    ],
)
def test_the_root_is_named_after_the_file(tmp_path: Path, file: str, root: str) -> None:
    state = mixed(3)
    assert ours(state, "2.13", root) == saved(tmp_path / file, state)


def test_a_gpu_is_named_again_for_each_tensor(tmp_path: Path) -> None:
    """torch joins "cuda:" and the index for each tensor, so the pickle never refers back to it."""
    state = views()
    with saving_from_a_gpu():
        expected = saved(tmp_path / "rank.pth", state)
    assert ours(state, "2.13", "rank", location="cuda:0") == expected
    assert ours(state, "2.13", "rank") != expected


@pytest.mark.skipif(not OLD_TORCH.exists(), reason="needs shared/data/old-torch")
@pytest.mark.parametrize(
    ("file", "root"), [("consolidated.00.pth", "consolidated.00"), ("buffer.pth", "archive")]
)
def test_a_file_of_torch_1_13_is_written_again(file: str, root: str) -> None:
    """They hold own storages, and a whole layer as views of one at an offset."""
    state = load(OLD_TORCH / file)
    expected = (OLD_TORCH / file).read_bytes()
    assert ours(state, "1.13", root) == expected
    assert ours(state, "2.13", root) != expected
    sums = json.loads((OLD_TORCH / "expected.json").read_bytes())
    content = ours(state, "1.13", root)
    offsets = lay_out(described(state, root), "1.13").tensor_offsets
    for name, tensor in state.items():
        own = content[offsets[name] : offsets[name] + 2 * tensor.numel()]
        assert hashlib.sha256(own).hexdigest() == sums[name]


@pytest.mark.skipif(not OLD_TORCH.exists(), reason="needs shared/data/old-torch")
@pytest.mark.parametrize(
    ("file", "root"), [("consolidated.00.pth", None), ("buffer.pth", "archive")]
)
def test_what_the_tests_put_together_is_a_file_of_torch_1_13(tmp_path: Path, file, root) -> None:
    """The control of the tests that use such files where there are none of torch's own."""
    state = load(OLD_TORCH / file)
    save_as_old_torch(state, tmp_path / file, root)
    assert (tmp_path / file).read_bytes() == (OLD_TORCH / file).read_bytes()
    state["norm.weight"] = -state["norm.weight"]
    save_as_old_torch(state, tmp_path / file, root)
    assert (tmp_path / file).read_bytes() != (OLD_TORCH / file).read_bytes()


@pytest.mark.parametrize("n_tensors", [1, 12, 300])
def test_both_writers_of_torch_1_13_write_the_same(tmp_path: Path, n_tensors: int) -> None:
    state = mixed(n_tensors)
    save_as_old_torch(state, tmp_path / "rank.pth")
    assert ours(state, "1.13", "rank") == (tmp_path / "rank.pth").read_bytes()


def test_torch_1_13_orders_storages_as_text_and_writes_few_records(tmp_path: Path) -> None:
    """PyTorch's writer, given these records in this order, writes the same up to their end."""
    state = mixed(12)
    path = tmp_path / "rank.pth"
    pickled = zipfile.ZipFile(io.BytesIO(saved(path, state))).read("rank/data.pkl")
    storages = data_of(state)
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", pickled, len(pickled))
    for key in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9):
        writer.write_record(f"data/{key}", storages[key], len(storages[key]))
    writer.write_end_of_file()
    expected = path.read_bytes()
    found = ours(state, "1.13", "rank")
    with zipfile.ZipFile(io.BytesIO(found)) as archive, zipfile.ZipFile(path) as of_torch:
        added_by_the_writer = ["rank/byteorder", "rank/.data/serialization_id"]
        assert [*archive.namelist(), *added_by_the_writer] == of_torch.namelist()
        assert archive.testzip() is None
        end = of_torch.getinfo("rank/byteorder").header_offset
        n_listed = sum(46 + len(name) for name in archive.namelist())
        listed = expected[of_torch.start_dir :][:n_listed]
    assert found[: end + n_listed] == expected[:end] + listed
    assert found[end + n_listed :][:4] == b"PK\6\6"


def test_data_like_a_descriptor_changes_nothing_but_torchs_id(tmp_path: Path) -> None:
    """torch sums up the CRC-32 of each descriptor that it writes, and takes such data for one.

    The id, which nothing reads, is the one known difference.
    """
    like_a_descriptor = torch.frombuffer(bytearray(b"PK\x07\x08" + bytes(12)), dtype=torch.float16)
    state = {"a": like_a_descriptor.clone()}
    records = []
    for content in (saved(tmp_path / "rank.pth", state), ours(state, "2.13", "rank")):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            records.append({name: archive.read(name) for name in archive.namelist()})
    of_torch, of_ours = records
    id_of_torch = of_torch.pop("rank/.data/serialization_id")
    id_of_ours = of_ours.pop("rank/.data/serialization_id")
    assert of_torch == of_ours
    assert id_of_torch[:20] == id_of_ours[:20]
    assert id_of_torch[20:] != id_of_ours[20:]


def test_every_tensor_has_a_storage_of_its_own_by_default() -> None:
    specs = [TensorSpec("a", BFLOAT16, (2, 3)), TensorSpec("b", FLOAT32, (5,))]
    assert own_storages(specs, root="consolidated.01") == SavedRank(
        tensors=(SavedTensor(specs[0], 0, 0), SavedTensor(specs[1], 1, 0)),
        storage_elements=(6, 5),
        root="consolidated.01",
        container="dict",
        location="cpu",
    )
