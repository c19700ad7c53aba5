"""However the bytes are moved, they are the same: tiles, workers, direct and buffered I/O."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import ConvertError
from codellama_convert.plan.job import Options
from codellama_convert.storage.output_file import OutputFile
from codellama_convert.tensors import FLOAT32
from tests.witness.checkpoints import (
    Shape,
    random_model,
    save_checkpoint,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory):
    """Tensors of odd sizes, so that many of them share a 4 KiB block of the output."""
    folder = tmp_path_factory.mktemp("odd")
    shape = Shape(dim=72, n_layers=3, n_heads=12, n_kv_heads=6, hidden=174, vocab=330)
    save_checkpoint(folder / "in", shape, random_model(shape, torch.bfloat16, 9), n_ranks=6)
    convert_checkpoint(
        folder / "in", folder / "out", options=Options(workers=1, io_mode="buffered")
    )
    return folder


@pytest.mark.parametrize("io_mode", ["auto", "buffered", "no positional I/O"])
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("tile_bytes", [1, 5000, 4096, 1 << 20])
def test_the_bytes_do_not_depend_on_how_they_are_moved(
    odd_checkpoint, tmp_path, monkeypatch, io_mode, workers, tile_bytes
):
    if io_mode == "no positional I/O":  # as on Windows: seek and read under a lock
        monkeypatch.setattr("codellama_convert.storage.blocks._HAS_POSITIONAL_IO", False)
        io_mode = "auto"
    options = Options(io_mode=io_mode, workers=workers, tile_bytes=tile_bytes)
    convert_checkpoint(odd_checkpoint / "in", tmp_path / "out", options=options)
    for path in (odd_checkpoint / "out").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_disk_of_the_checkout_gives_the_same_bytes(odd_checkpoint):
    """The suite may run in memory; this one meets a real file system and its direct I/O."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY, prefix=".test-") as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        shutil.copytree(odd_checkpoint / "in", source)
        convert_checkpoint(source, target, options=Options(workers=4, tile_bytes=9000))
        for path in (odd_checkpoint / "out").iterdir():
            assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_block_of_the_output_is_written_in_one_mode_only(odd_checkpoint, tmp_path, monkeypatch):
    written = {"write_at": set(), "write_blocks": set()}
    for mode, blocks in written.items():
        original = getattr(OutputFile, mode)

        def spy(self, offset, piece, *, blocks=blocks, original=original):
            if "safetensors" in self.path.name and piece:
                blocks.update(range(offset // 4096, (offset + len(piece) - 1) // 4096 + 1))
            original(self, offset, piece)

        monkeypatch.setattr(OutputFile, mode, spy)
    options = Options(workers=4, tile_bytes=5000)
    report = convert_checkpoint(odd_checkpoint / "in", tmp_path / "out", options=options)
    if not report.direct:
        pytest.skip("this file system has no direct I/O")
    n_blocks = (tmp_path / "out" / "model.safetensors").stat().st_size // 4096 + 1
    assert not written["write_at"] & written["write_blocks"]
    assert written["write_at"] | written["write_blocks"] == set(range(n_blocks))
    assert len(written["write_blocks"]) > n_blocks // 3


def test_asking_for_direct_io_where_there_is_none_is_refused_and_auto_is_quiet(
    odd_checkpoint, tmp_path
):
    """A file system that refuses O_DIRECT; procfs is one that every Linux has."""
    from codellama_convert.storage.input_file import InputFile

    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc here")
    with InputFile(cpuinfo, io_mode="auto") as file:
        assert not file.direct
    with pytest.raises(ConvertError, match="direct I/O"):
        InputFile(cpuinfo, io_mode="direct")


def test_a_cast_gives_torch_its_threads_back(odd_checkpoint, tmp_path):
    before = torch.get_num_threads()
    convert_checkpoint(odd_checkpoint / "in", tmp_path / "out", options=Options(dtype=FLOAT32))
    assert torch.get_num_threads() == before
