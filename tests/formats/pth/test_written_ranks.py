"""Every reader of .pth files reads what the rank writer writes, and finds what is wrong in it."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_convert.choices import TORCH_LAYOUTS, TorchLayout
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.formats.pth.writer import lay_out
from tests.formats.pth.saved_ranks import (
    DTYPES,
    State,
    data_of,
    described,
    filled,
    load,
    mixed,
    ours,
    raw,
    saved,
)


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
