"""The rank writer's files are torch.save's own, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.formats.pth.saved_rank import (
    TORCH_LAYOUTS,
    SavedRank,
    SavedTensor,
    TorchLayout,
    own_storages,
)
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.tensors import BFLOAT16, FLOAT32, TensorSpec
from tests.formats.pth.saved_ranks import (
    State,
    data_of,
    described,
    filled,
    ours,
    saved,
    saving_from_a_gpu,
)
from tests.witness.old_torch import save_as_old_torch

OLD_TORCH = Path(__file__).parents[4] / "shared" / "data" / "old-torch"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def mixed(n_tensors: int) -> State:
    """Vectors and matrices of all dtypes in turn."""
    torch.manual_seed(n_tensors)
    shapes = ((7,), (3, 5), (1, 1), (300, 2))
    return {
        f"layers.{number}.weight": torch.randn(shapes[number % 4]).to(DTYPES[number % 3])
        for number in range(n_tensors)
    }


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


def load(path: Path | io.BytesIO, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of storages without a type
        return torch.load(path, weights_only=True, **how)


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


@st.composite
def random_states(draw: st.DrawFn) -> State:
    """Draw storages, and tensors that are views of them or the whole of them."""
    storages = [
        torch.tensor(draw(st.lists(st.integers(-9, 9), min_size=1, max_size=40))).to(dtype)
        for dtype in draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=14))
    ]
    names = draw(
        # An object may be the same as another of torch's only where it is one digit.
        st.lists(
            st.text(min_size=1, max_size=30).filter(lambda name: not name.isdecimal()),
            min_size=len(storages),
            max_size=40,
            unique=True,
        )
    )
    state = {}
    for number, name in enumerate(names):
        chosen = number if number < len(storages) else draw(st.integers(0, len(storages) - 1))
        storage = storages[chosen]
        start = draw(st.integers(0, len(storage) - 1))
        end = draw(st.integers(start + 1, len(storage)))
        n_rows = draw(st.sampled_from([n for n in (1, 2, 3, 5) if (end - start) % n == 0]))
        vector = storage[start:end]
        state[name] = draw(st.sampled_from([vector, vector.view(n_rows, -1), storage[start]]))
    return dict(draw(st.permutations(list(state.items()))))


@settings(deadline=None, max_examples=80)
@given(
    state=random_states(),
    container=st.sampled_from(["dict", "OrderedDict"]),
    layout=st.sampled_from(TORCH_LAYOUTS),
)
def test_any_rank_is_torchs_own_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, state: State, container: str, layout: TorchLayout
) -> None:
    state = OrderedDict(state) if container == "OrderedDict" else state
    path = tmp_path_factory.mktemp("rank") / "rank.pth"
    found = ours(state, layout, "rank", container=container)
    if layout == "2.13":
        assert found == saved(path, state)
    path.write_bytes(found)
    read_back = load(path, mmap=True)
    offsets = lay_out(described(state, "rank", container=container), layout).tensor_offsets
    index = read_rank(path)
    assert list(read_back) == list(index.tensors) == list(offsets) == list(state)
    for name, tensor in state.items():
        assert read_back[name].dtype == tensor.dtype
        assert read_back[name].shape == tensor.shape == index.tensors[name].shape
        assert raw(read_back[name]) == raw(tensor)
        stored = index.tensors[name]
        assert stored.storage.offset + stored.extent[0] == offsets[name]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_all_readers_read_it(
    tmp_path: Path, layout: TorchLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its debug assertions, torch also computes each position and compares it."""
    state = mixed(30)
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(ours(state, layout, "consolidated.00"))
    assert zipfile.ZipFile(path).testzip() is None
    index = read_rank(path)
    assert index.root == "consolidated.00"
    assert all(storage.offset % 64 == 0 for storage in index.storages.values())
    config = torch.utils.serialization.config
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    for computed in (False, True):
        with config.patch({"load.calculate_storage_offsets": computed}):
            for mapped in (False, True):
                read_back = load(path, mmap=mapped)
                assert {name: raw(t) for name, t in read_back.items()} == {
                    name: raw(t) for name, t in state.items()
                }


def test_one_changed_byte_of_the_pickle_is_found() -> None:
    content = bytearray(ours(mixed(3), "1.13", "rank"))
    content[content.index(b"layers.1")] ^= 1
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() == "rank/data.pkl"


def test_a_wrong_crc_is_found() -> None:
    state = mixed(3)
    data = data_of(state)
    content = bytearray(filled(lay_out(described(state), "1.13"), [*data[:2], bytes(len(data[2]))]))
    start = lay_out(described(state), "1.13").storage_spans[2][0]
    content[start : start + len(data[2])] = data[2]
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() == "archive/data/2"


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_nothing_loads_a_file_without_its_seal(tmp_path: Path, layout: TorchLayout) -> None:
    """Without its end there is no archive; without its first header torch finds none."""
    state = mixed(3)
    plan, data = lay_out(described(state, "rank"), layout), data_of(state)
    content = bytearray(filled(plan, data, sealed=False))
    tail, head = plan.seal([zlib.crc32(storage) for storage in data])
    path = tmp_path / "rank.pth"

    path.write_bytes(content)
    assert not zipfile.is_zipfile(path)
    require_refused(path)

    content[tail[0] :] = tail[1]
    path.write_bytes(content)
    assert zipfile.ZipFile(path).testzip() == "rank/data.pkl"
    require_refused(path)

    content[: len(head[1])] = head[1]
    path.write_bytes(content)
    assert zipfile.ZipFile(path).testzip() is None
    assert list(load(path)) == list(read_rank(path).tensors) == list(state)


def require_refused(path: Path) -> None:
    with pytest.raises((RuntimeError, pickle.UnpicklingError)):
        load(path)
    with pytest.raises(CheckpointError, match="is not a PyTorch zip archive"):
        read_rank(path)


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
