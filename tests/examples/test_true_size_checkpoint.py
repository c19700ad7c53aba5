"""The checkpoints of true shapes, and the plain copy, as the benchmark makes them."""

from __future__ import annotations

import json
import zipfile
import zlib
from importlib.util import find_spec

import pytest

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.plan.job import Options, plan_conversion
from tests.examples.running import EXAMPLES, make, needs_linux, script

pytestmark = needs_linux


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    options = ("--size=13B", "--layers=1", "--sparse")
    return make(tmp_path_factory.mktemp("sparse") / "CodeLlama-13b", *options)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return make(tmp_path_factory.mktemp("filled") / "CodeLlama-tiny", "--size=tiny")


def test_the_values_are_finite_and_torch_reads_what_the_package_converts(filled, tmp_path):
    import torch
    from safetensors.torch import load_file

    convert_checkpoint(filled, tmp_path / "out", options=Options())
    ours = load_file(tmp_path / "out" / "model.safetensors")
    ranks = [torch.load(path, weights_only=True) for path in sorted(filled.glob("*.pth"))]
    norms = [rank["layers.1.ffn_norm.weight"] for rank in ranks]
    assert torch.equal(ours["model.layers.1.post_attention_layernorm.weight"], norms[0])
    assert torch.equal(*norms)
    assert 0.5 < norms[0].float().mean() < 1.5
    head = torch.cat([rank["output.weight"] for rank in ranks])
    assert torch.equal(ours["lm_head.weight"], head)
    for tensor in ours.values():
        assert tensor.float().abs().max() < 10
        assert (tensor != 0).float().mean() > 0.99


def test_every_crc_is_the_true_one_and_a_flipped_byte_is_found(filled, tmp_path):
    for path in filled.glob("*.pth"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert all(entry.CRC for entry in archive.infolist())
    copy = tmp_path / "CodeLlama-tiny"
    copy.mkdir()
    for path in filled.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    storage = read_rank(copy / "consolidated.01.pth").tensors["output.weight"].storage
    with (copy / "consolidated.01.pth").open("r+b") as file:
        file.seek(storage.offset + storage.n_bytes // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth.*CRC-32"):
        convert_checkpoint(copy, tmp_path / "out", options=Options())


def test_a_sparse_checkpoint_has_true_crcs_and_next_to_no_bytes(sparse):
    job = plan_conversion(sparse, Options())
    assert job.weights is not None
    # 13B: embedding, head, four attention and three feed-forward matrices, three norms.
    parameters = 2 * 32016 * 5120 + 4 * 5120 * 5120 + 3 * 13824 * 5120 + 3 * 5120
    assert job.weights.plan.n_parameters == parameters
    assert job.tokenizer is not None
    assert job.tokenizer.model.n_pieces == 32016
    on_disk = sum(512 * path.stat().st_blocks for path in sparse.iterdir())
    assert on_disk < 2_000_000
    for rank in job.ranks:
        storage = rank.tensors["layers.0.attention.wo.weight"].storage
        assert storage.crc == zlib.crc32(bytes(storage.n_bytes))


def test_a_llama_3_has_its_releases_params_split_and_size(tmp_path):
    """The benchmark knew Code Llama's shapes alone."""
    folder = make(tmp_path / "Llama3.1-405B", "--size=Llama3.1-405B", "--layers=2", "--sparse")
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    assert params == {
        "dim": 16384, "n_layers": 2, "n_heads": 128, "n_kv_heads": 8, "vocab_size": 128256,
        "ffn_dim_multiplier": 1.2, "multiple_of": 4096, "norm_eps": 1e-05,
        "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    ranks = [read_rank(path) for path in sorted(folder.glob("*.pth"))]
    assert len(ranks) == 8
    tensors = ranks[7].tensors
    assert tensors["tok_embeddings.weight"].shape == (16032, 16384)
    assert tensors["layers.1.attention.wk.weight"].shape == (128, 16384)
    assert "rope.freqs" not in tensors
    assert (folder / "tokenizer.model").exists() == (find_spec("llama_models") is not None)
    options = Options(skip_tokenizer=True)
    # Embedding and head, two layers of GQA and a feed-forward width of 53,248, and the last norm.
    layer = 2 * 16384 * 16384 + 2 * 1024 * 16384 + 3 * 53248 * 16384 + 2 * 16384
    n_bytes = 2 * (2 * 128256 * 16384 + 2 * layer + 16384)
    assert plan_conversion(folder, options).tensor_bytes == n_bytes


def test_the_ranks_of_a_sparse_checkpoint_differ_in_one_storage(sparse):
    indexes = [read_rank(path) for path in sorted(sparse.glob("*.pth"))]
    crcs = [{name: s.crc for name, s in index.storages.items()} for index in indexes]
    differing = [name for name in crcs[0] if crcs[0][name] != crcs[1][name]]
    assert differing == [indexes[0].tensors["output.weight"].storage.name]
    for index in indexes:
        storage = index.tensors["output.weight"].storage
        with index.path.open("rb") as file:
            file.seek(storage.offset)
            assert zlib.crc32(file.read(storage.n_bytes)) == storage.crc


def test_the_floor_copies_bytes_and_a_cast_s_floor_writes_them_twice(filled, tmp_path):
    source = filled / "consolidated.00.pth"
    once = script("direct_copy.py", source, "--target", tmp_path / "once", "--tile-bytes", 1 << 20)
    assert once.returncode == 0, once.stderr
    assert (tmp_path / "once").read_bytes() == source.read_bytes()
    twice = script("direct_copy.py", source, "--target", tmp_path / "twice", "--write_times", 2)
    assert twice.returncode == 0, twice.stderr
    n_blocks = -(-source.stat().st_size // 4096)
    assert (tmp_path / "twice").stat().st_size == 2 * 4096 * n_blocks
    dashes = ("--target", tmp_path / "dashes", "--write-times", 2, "--tile_bytes", 4096)
    assert script("direct_copy.py", source, *dashes).returncode == 0
    assert (tmp_path / "dashes").stat().st_size == 2 * 4096 * n_blocks
    again = script("direct_copy.py", source, "--target", tmp_path / "once")
    assert again.returncode != 0  # nothing is written over


def test_the_size_formula_agrees_with_the_tensors(monkeypatch, filled):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from make_true_size_checkpoint import SIZES

    assert SIZES["tiny"].n_bytes == plan_conversion(filled, Options()).tensor_bytes
    assert SIZES["7B"].n_bytes == 13_477_093_376  # CodeLlama-7b-hf's total_size on the hub
    assert SIZES["70B"].n_bytes == 137_953_820_672
    assert SIZES["Llama3.1-8B"].n_bytes == 16_060_522_496  # Llama-3.1-8B's total_size on the hub
    assert SIZES["Llama3.1-405B"].n_bytes == 811_706_777_600  # 405,853,388,800 parameters
