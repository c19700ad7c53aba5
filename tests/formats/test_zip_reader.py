"""The zip reader finds every entry where zipfile does, or says what is wrong."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.formats.zip_reader import (
    Archive,
    Entry,
    read_archive,
    read_entry,
)
from codellama_convert.plan.job import Options
from codellama_convert.storage.input_file import InputFile
from tests.faults.hostile.rank_bytes import N_RECORDS, RANK, STATE, TINY, bits_of, rank_file
from tests.faults.hostile.zip_bytes import Member, stream_member, write_zip, zip64_extra, zip_offset
from tests.witness.checkpoints import expected_state_dict, read_output, same_bits, save_checkpoint

ROOT = Path(__file__).parents[2]
OLD_TORCH = ROOT.parent / "shared" / "data" / "old-torch"


def read(path: Path, content: bytes | None = None) -> Archive:
    if content is not None:
        path.write_bytes(content)
    with InputFile(path) as file:
        return read_archive(file)


def test_every_entry_of_a_torch_file_lies_where_zipfile_finds_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, TINY, STATE, tokenizer=False) / RANK
    found = read(path).entries
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            offset = zip_offset(path, info.filename)
            assert found[name] == Entry(name, offset, info.file_size, info.CRC)
        assert len(found) == len(archive.infolist())


class CountedFile(InputFile):
    """Counts how often it is read."""

    n_reads = 0

    def read_into(self, target: memoryview, offset: int) -> None:
        self.n_reads += 1
        super().read_into(target, offset)


def test_an_entry_takes_one_reading(tmp_path: Path) -> None:
    """It took three, and on a network file system each of 405B's 55,000 is a round trip."""
    path = tmp_path / RANK
    torch.save({f"t{n}": torch.zeros(4096) for n in range(100)}, path)
    with CountedFile(path) as file:
        entries = read_archive(file).entries
        assert len(entries) > 100
        assert 100 < file.n_reads < len(entries) + 10  # and the end records and the directory


def test_records_begin_and_end_where_their_bytes_do(tmp_path: Path) -> None:
    members = rank_file().members()
    content = write_zip(members)
    found = read(tmp_path / RANK, content).entries
    for member in members:
        entry = found[member.name.partition("/")[2]]
        assert content[entry.offset : entry.offset + entry.n_bytes] == member.content
        assert entry.crc == zlib.crc32(member.content)


def test_the_directory_hash_knows_every_crc(tmp_path: Path) -> None:
    rank = rank_file()
    before = read(tmp_path / "a", write_zip(rank.members())).directory_sha256
    assert read(tmp_path / "b", write_zip(rank.members())).directory_sha256 == before
    rank.records["data/3"] = bytes(128)
    assert read(tmp_path / "c", write_zip(rank.members())).directory_sha256 != before


@pytest.mark.parametrize("n_fields", [0, 1, 63])
def test_a_zip64_field_behind_others_is_found(tmp_path: Path, n_fields: int) -> None:
    others = struct.pack("<2H", 0x7875, 0) * n_fields
    member = Member("a/data", b"abc")
    said = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": others + zip64_extra(3, 3)}
    member.local |= said
    member.central |= said
    assert read(tmp_path / "a.zip", write_zip([member])).entries["data"].n_bytes == 3


def test_a_zip64_field_behind_64_others_is_not_looked_for(tmp_path: Path) -> None:
    member = Member("a/data", b"abc")
    extra = struct.pack("<2H", 0x7875, 0) * 64 + zip64_extra(3, 3)
    member.central |= {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": extra}
    with pytest.raises(CheckpointError, match="zip64"):
        read(tmp_path / "a.zip", write_zip([member]))


@pytest.mark.parametrize(
    "extra",
    [
        zip64_extra(3),  # one value where two are missing
        struct.pack("<2H", 1, 16) + bytes(8),  # cut
        struct.pack("<2HQQ", 2, 16, 3, 3),  # of another kind
        b"\x01",
        b"",
    ],
)
def test_a_damaged_zip64_field_is_refused(tmp_path: Path, extra: bytes) -> None:
    member = Member("a/data", b"abc")
    member.central |= {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF, "extra": extra}
    with pytest.raises(CheckpointError, match="zip64"):
        read(tmp_path / "a.zip", write_zip([member]))


def test_only_the_offset_may_be_in_the_zip64_field(tmp_path: Path) -> None:
    member = Member("a/data", b"abc")
    member.central |= {"offset": 0xFFFFFFFF, "extra": zip64_extra(0)}
    assert read(tmp_path / "a.zip", write_zip([member])).entries["data"].offset == 36


def test_a_stream_entry_of_64_bits_is_read(tmp_path: Path) -> None:
    member = stream_member("a/data", b"abc")
    member.descriptor = b"PK\x07\x08" + struct.pack("<I2Q", zlib.crc32(b"abc"), 3, 3)
    assert read(tmp_path / "a.zip", write_zip([member])).entries["data"].n_bytes == 3


def test_an_end_record_whose_fields_spell_its_signature_is_found(tmp_path: Path) -> None:
    """A directory at offset 0x06054b50 holds the signature's bytes in the end record itself."""
    head = write_zip([Member("a/data", b"abc")])
    at = head.index(b"PK\x01\x02")
    offset = 0x06054B50
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(head) - 22 - at, offset, 0)
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.write(head[:at])
        file.seek(offset)
        file.write(head[at:-22] + end)
    assert read(path).entries["data"].n_bytes == 3


def test_an_entry_larger_than_plausible_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    entry = read(path, write_zip([Member("a/data", b"abcd")])).entries["data"]
    with InputFile(path) as file:
        assert read_entry(file, entry, 4) == b"abcd"
        with pytest.raises(CheckpointError, match="4 bytes"):
            read_entry(file, entry, 3)


# --- more than 4 GiB ------------------------------------------------------------------------------


def test_a_zip64_rank_of_more_than_4_gib_is_converted(tmp_path: Path) -> None:
    """torch lays it out with holes; one entry is larger than 4 GiB, and the weights lie behind it.

    The weights are then written where zipfile and torch say; all CRC fields are 0, "not computed".
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.serialization import skip_data

    folder = save_checkpoint(tmp_path / "in", TINY, STATE, tokenizer=False, rope=None)
    path = folder / RANK
    huge = (1 << 31) + 5
    with FakeTensorMode():
        saved = {"rope.freqs": torch.empty(huge, 1, dtype=torch.bfloat16)}
        saved |= {name: torch.empty(t.shape, dtype=t.dtype) for name, t in STATE.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(saved, path)
    assert path.stat().st_size > 1 << 32
    with path.open("r+b") as file:
        for number, tensor in enumerate(STATE.values(), start=1):
            file.seek(zip_offset(path, f"data/{number}"))
            file.write(bits_of(tensor))

    rank = read_rank(path)
    assert rank.storages["data/0"].n_bytes == 2 * huge > 1 << 32
    assert len(rank.storages) == N_RECORDS + 1
    for name, storage in rank.storages.items():
        assert storage.offset == zip_offset(path, f"/{name}")
        assert storage.crc is None
    assert rank.tensors[next(iter(STATE))].storage.offset > 1 << 32

    convert_checkpoint(folder, tmp_path / "out", options=Options(skip_tokenizer=True))
    found = read_output(tmp_path / "out")
    for name, tensor in expected_state_dict(STATE, TINY).items():
        assert same_bits(found[name], tensor), name


# --- files of PyTorch 1.13 ------------------------------------------------------------------------


@pytest.mark.skipif(not OLD_TORCH.is_dir(), reason="the files of PyTorch 1.13 are not here")
@pytest.mark.parametrize("name", ["consolidated.00.pth", "buffer.pth", "parameters.pth"])
def test_files_of_pytorch_1_13_are_read_bit_for_bit(name: str) -> None:
    path = OLD_TORCH / name
    expected = json.loads((OLD_TORCH / "expected.json").read_text())
    rank = read_rank(path)
    assert set(rank.tensors) == set(expected)
    with InputFile(path) as file:
        for tensor in rank.tensors.values():
            assert tensor.order == "rows"
            first, end = tensor.extent
            content = file.read_exact(tensor.storage.offset + first, end - first)
            assert hashlib.sha256(content).hexdigest() == expected[tensor.name], tensor.name
        for storage in rank.storages.values():
            whole = file.read_exact(storage.offset, storage.n_bytes)
            assert storage.crc == zlib.crc32(whole)
