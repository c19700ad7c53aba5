"""What a .pth file says of its tensors, and what is said of one that tells it otherwise."""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth import reader as pth
from codellama_convert.formats.pth.declared import take_all
from codellama_convert.formats.pth.reader import PickleCache, read_rank, read_vector
from codellama_convert.formats.zip_reader import read_archive, read_entry
from codellama_convert.storage.input_file import InputFile
from tests.faults.hostile.rank_bytes import (
    P_FALSE,
    P_NONE,
    P_ORDERED_DICT,
    RankFile,
    p_call,
    p_dict,
    p_global,
    p_int,
    p_pickle,
    p_str,
)
from tests.faults.hostile.zip_bytes import Member, write_zip
from tests.formats.one_record import CONTENT, METAS, declared, rank_file, read, write
from tests.refusals import refused

# --- a whole file ---------------------------------------------------------------------------------


def test_an_index_tells_one_file_from_another(tmp_path: Path) -> None:
    """Resuming and verifying take a file for the same by these."""
    path = write(tmp_path / "rank.pth", rank_file(declared((64,), (1,))))
    index, status = read_rank(path), path.stat()
    assert index.path == path
    assert index.n_bytes == status.st_size
    assert index.mtime_ns == status.st_mtime_ns
    assert index.inode == (status.st_dev, status.st_ino)
    with InputFile(path) as file:
        archive = read_archive(file)
        pickled = read_entry(file, archive.entries["data.pkl"], 1 << 16)
    assert index.directory_sha256 == archive.directory_sha256
    assert index.pickle_sha256 == hashlib.sha256(pickled).hexdigest()
    assert pickle.loads(pickle.dumps(index)) == index
    said = {"dropped": {"rope.freqs": (4,)}, "notes": ("a note",)}
    chosen = read_rank(path, choose=lambda *read: replace(take_all(*read), **said))
    assert chosen == replace(index, **said)
    assert (index.root, index.dropped, index.notes) == ("archive", {}, ())


def test_an_ordered_dict_is_read_like_a_dict(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
    for kind in (dict, OrderedDict):
        torch.save(kind(state), tmp_path / "rank.pth")
        index = read_rank(tmp_path / "rank.pth")
        shapes = {name: tensor.shape for name, tensor in index.tensors.items()}
        assert shapes == {"a": (2, 3), "b": (4,)}
        assert index.container == kind.__name__


def test_a_pickle_that_was_seen_before_is_not_parsed_again(tmp_path: Path, monkeypatch) -> None:
    """Nor checked; the ranks of one model often have the same, and their records the same sizes."""
    rank = rank_file(declared((64,), (1,)))
    cache: PickleCache = {}
    first = read_rank(write(tmp_path / "a.pth", rank), cache=cache)
    assert list(cache) == [rank.pickled()]
    read, parsed = pth.read_declared, []
    monkeypatch.setattr(
        pth, "read_declared", lambda path, raw: parsed.append(raw) or read(path, raw)
    )
    check, checked = pth.check_tensors, []
    monkeypatch.setattr(
        pth, "check_tensors", lambda path, *rest: checked.append(path.name) or check(path, *rest)
    )
    second = read_rank(write(tmp_path / "b.pth", rank), cache=cache)
    assert second.tensors == first.tensors
    assert (parsed, checked) == ([], [])
    other = rank_file(declared((32, 2), (2, 1)))
    assert read_rank(write(tmp_path / "c.pth", other), cache=cache).tensors["t"].shape == (32, 2)
    assert (parsed, checked) == ([other.pickled()], ["c.pth"])


@pytest.mark.parametrize(
    ("records", "fact"),
    [({}, "storage record data/0 is missing"), ({"data/0": CONTENT[:-2]}, "holds 126")],
)
def test_a_pickle_that_was_seen_before_vouches_for_no_record(
    tmp_path: Path, records: dict[str, bytes], fact: str
) -> None:
    """What was checked of the first file's tensors holds where the records have the same sizes."""
    tensor, cache = declared((64,), (1,)), PickleCache()
    read_rank(write(tmp_path / "a.pth", rank_file(tensor)), cache=cache)
    with refused(CheckpointError, "b.pth", "'t'", fact):
        read_rank(write(tmp_path / "b.pth", RankFile([tensor], records)), cache=cache)
    other = RankFile([tensor], {"data/9": b"before it", "data/0": CONTENT[::-1]})
    path = write(tmp_path / "c.pth", other)
    storage = read_rank(path, cache=cache).tensors["t"].storage
    assert storage.crc == zlib.crc32(CONTENT[::-1])
    assert path.read_bytes()[storage.offset :].startswith(CONTENT[::-1])


@pytest.mark.parametrize(
    ("pickled", "kind"),
    [
        (P_NONE, "None"),
        (b"]", "list"),
        (b")", "tuple"),
        (p_int(1), "int"),
        (declared((64,), (1,)).pickled(), "tensor"),
    ],
)
def test_what_is_no_dict_of_tensors_is_named(tmp_path: Path, pickled: bytes, kind: str) -> None:
    rank = rank_file(declared((64,), (1,)))
    with refused(CheckpointError, "rank.pth", kind, "flat layout", METAS):
        read(tmp_path, rank, p_pickle(pickled))
    if kind != "tensor":
        with refused(CheckpointError, "rank.pth", "'entry'", kind, "flat layout", METAS):
            read(tmp_path, rank, p_pickle(p_dict([(p_str("entry"), pickled)])))
    with refused(CheckpointError, "rank.pth", "'model'", "nested dict", "flat layout", METAS):
        read(tmp_path, rank, p_pickle(p_dict([(p_str("model"), p_dict(rank.items()))])))
    assert list(read(tmp_path, rank).tensors) == ["t"]


@pytest.mark.parametrize("method", [0, 8])
def test_a_torchscript_archive_is_called_one(tmp_path: Path, method: int) -> None:
    """torch compresses its code, so the file was said to have been zipped again."""
    members = rank_file(declared((64,), (1,))).members()
    root = members[0].name.partition("/")[0]
    path = tmp_path / "rank.pth"
    for name, what in (("code/__torch__.py", "is a TorchScript archive"), ("data/9", "compressed")):
        script = Member(f"{root}/{name}", b"def", {"method": method}, {"method": method})
        constants = [Member(f"{root}/constants.pkl", b"\x80\x02).")] if "code" in name else []
        path.write_bytes(write_zip([*members, script, *constants]))
        if method == 0 and not constants:
            assert list(read_rank(path).tensors) == ["t"]
            continue
        with refused(CheckpointError, "rank.pth", what):
            read_rank(path)


@pytest.mark.parametrize(
    ("record", "fact"),
    [
        ("byteorder", "byteorder b'0123456789abcdef' is not supported (little-endian only); load"),
        ("version", "format version b'0123456789abcdef' is not known (1 to 10); the file is"),
    ],
)
def test_of_a_long_record_the_first_16_bytes_are_quoted(
    tmp_path: Path, record: str, fact: str
) -> None:
    """Such a record may have 64 KiB, and the refusal is one line."""
    members = rank_file(declared((64,), (1,))).members()
    path = tmp_path / "rank.pth"
    path.write_bytes(write_zip(members))
    assert list(read_rank(path).tensors) == ["t"]
    (member,) = [one for one in members if one.name == f"archive/{record}"]
    member.content = b"0123456789abcdefg"
    path.write_bytes(write_zip(members))
    with refused(CheckpointError, "rank.pth", fact):
        read_rank(path)


def test_a_refused_pickle_says_that_nothing_ran(tmp_path: Path) -> None:
    with refused(
        CheckpointError, "rank.pth: data.pkl: ", "os.system", "; ", "Nothing was executed"
    ):
        read(tmp_path, rank_file(), b"\x80\x02cos\nsystem\n.")


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "itemsize"), [("BFloat16", 2), ("Half", 2), ("Float", 4)])
@pytest.mark.parametrize(
    ("n", "stride", "offset"),
    [
        (6, 1, 0),
        (6, 1, 5),
        (6, 7, 5),
        (1, 0, 3),  # the step along one element means nothing
        (1, 0, 600_000),  # nor does it where more than 1 MiB lies before the element
        (5, 200_003, 2),  # reaches over more than 1 MiB: element by element
    ],
)
def test_a_vector_is_read_whole(tmp_path: Path, kind, itemsize, n, stride, offset) -> None:
    n_elements = offset + (n - 1) * stride + 9
    content = bytearray(itemsize * n_elements)
    expected = b""
    for i in range(n):
        at = itemsize * (offset + i * stride)
        content[at : at + itemsize] = bytes([17 * i + k + 1 for k in range(itemsize)])
        expected += content[at : at + itemsize]
    vector = declared(
        (n,), (stride,), n_elements=n_elements, offset=offset, storage=f"{kind}Storage"
    )
    path = write(tmp_path / "rank.pth", rank_file(vector, content=bytes(content)))
    tensor = read_rank(path).tensors["t"]
    with InputFile(path) as file:
        assert read_vector(file, tensor) == expected


# --- what torch applies beside the bytes ------------------------------------------------------------


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_negation_that_torch_left_to_the_reader_is_not_lost(tmp_path: Path, dtype) -> None:
    """A lazily negated tensor: the bytes have one sign, the pickle says to turn it.

    It was converted with every sign wrong, and `verify` agreed.
    """
    path, values = tmp_path / "rank.pth", torch.tensor([1.0, 2.0, -3.0], dtype=dtype)
    view = torch._neg_view(values)
    torch.save({"plain": values, "t": view}, path)
    assert loaded(path)["t"].tolist() == [-1.0, -2.0, 3.0]
    with refused(CheckpointError, "rank.pth", "'t'", "metadata of _rebuild_tensor_v2", "'neg'"):
        read_rank(path)
    torch.save({"plain": values, "t": view.detach().resolve_neg()}, path)  # what the hint says
    assert list(read_rank(path).tensors) == ["plain", "t"]


def test_a_state_that_replaces_the_values_is_refused(tmp_path: Path) -> None:
    """torch sets every attribute of a state, and `data` of a tensor is its values."""
    path = tmp_path / "rank.pth"

    class Forged(torch.nn.Parameter):
        def __reduce_ex__(self, protocol):
            state = {"data": torch.full((2,), 7.0)}
            arguments = (torch.ones(2), False, OrderedDict(), state)
            return torch._utils._rebuild_parameter_with_state, arguments

    torch.save({"t": Forged(torch.ones(2))}, path)
    assert loaded(path)["t"].tolist() == [7.0, 7.0]
    with refused(CheckpointError, "'t'", "state of _rebuild_parameter_with_state", "'data'"):
        read_rank(path)
    torch.save({"t": torch.nn.Parameter(torch.ones(2))}, path)
    assert loaded(path)["t"].requires_grad
    assert list(read_rank(path).tensors) == ["t"]


@pytest.mark.parametrize("as_parameter", [False, True])
def test_attributes_of_a_tensor_are_named(tmp_path: Path, *, as_parameter: bool) -> None:
    path, tensor = tmp_path / "rank.pth", torch.ones(2)
    tensor = torch.nn.Parameter(tensor) if as_parameter else tensor
    tensor.partition_dim = 0
    torch.save({"t": tensor}, path)
    assert loaded(path)["t"].partition_dim == 0
    with refused(CheckpointError, "rank.pth", "'t'", "state of _rebuild_", "'partition_dim'"):
        read_rank(path)
    torch.save({"t": tensor.detach().resolve_neg()}, path)  # what the hint says
    assert list(read_rank(path).tensors) == ["t"]


def test_a_name_in_other_case_is_the_same_record_to_torch(tmp_path: Path) -> None:
    """So a byte order in capitals swaps the bytes, and of two names torch takes either."""
    path = tmp_path / "rank.pth"
    rank = rank_file(declared((64,), (1,), storage="HalfStorage"))
    members = rank.members()
    members[1].name = "archive/BYTEORDER"
    path.write_bytes(write_zip(members))
    assert read_rank(path).tensors["t"].shape == (64,)
    little = loaded(path)["t"].view(torch.uint8).numpy().tobytes()
    assert little == CONTENT
    members[1].content = b"big"
    path.write_bytes(write_zip(members))
    assert loaded(path)["t"].view(torch.uint8).numpy().tobytes()[:4] == b"\1\0\3\2"
    with refused(CheckpointError, "rank.pth", "byteorder", "big"):
        read_rank(path)
    other = Member("archive/DATA/0", bytes(len(CONTENT)))
    path.write_bytes(write_zip([other, *rank.members()]))
    assert loaded(path)["t"].shape == (64,)  # without a word
    with refused(CheckpointError, "rank.pth", "data/0", "duplicate"):
        read_rank(path)


def test_a_wrapped_tensor_is_wrapped_three_times_at_most(tmp_path: Path) -> None:
    """Each call keeps its arguments: thousands around one tensor took gigabytes."""
    parameter = p_global("torch._utils", "_rebuild_parameter")
    value = declared((64,), (1,)).pickled()
    for n_calls in range(1, 7):
        value = p_call(parameter, value, P_FALSE, P_ORDERED_DICT)
        pickled = p_pickle(p_dict([(p_str("t"), value)]))
        if n_calls <= 4:  # and the tensor's own two
            assert list(read(tmp_path, rank_file(), pickled).tensors) == ["t"]
        else:
            with refused(CheckpointError, "rank.pth", "_rebuild_parameter", "unknown way"):
                read(tmp_path, rank_file(), pickled)
