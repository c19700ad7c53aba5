"""Meta's files come back byte for byte: from ranks to a Hugging Face folder, and from it to ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.convert.ranks.round_trips import RECORD, assert_comes_back, resave
from tests.convert.test_run import SHARED, needs_shared
from tests.formats.pth.saved_ranks import saving_from_a_gpu
from tests.outputs import content
from tests.witness.checkpoints import GQA, WIDE, random_model, save_checkpoint
from tests.witness.old_torch import resave_as_old_torch

ROOT = Path(__file__).parents[3]
needs_old_torch = pytest.mark.skipif(
    not (SHARED / "data" / "old-torch").is_dir(),
    reason="the files of PyTorch 1.13 in ../shared are not in this clone",
)


@pytest.mark.parametrize(
    ("n_ranks", "rope", "storage"),
    [
        (1, "top", "own"), (2, "top", "own"), (4, "top", "own"), (8, "top", "own"),
        (1, "inner", "own"), (2, "inner", "flat"), (4, None, "flat"), (8, "top", "flat"),
        (2, None, "own"),
    ],
)  # fmt: skip
def test_ranks_come_back_byte_for_byte(tmp_path, n_ranks, rope, storage):
    source = save_checkpoint(
        tmp_path / "in", WIDE, random_model(WIDE, torch.bfloat16, 3, special_values=True),
        n_ranks=n_ranks, rope=rope, storage=storage,
    )  # fmt: skip
    assert_comes_back(source, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_so_do_those_of_other_dtypes(tmp_path, dtype):
    state = random_model(GQA, dtype, 1, special_values=True)
    assert_comes_back(save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2), tmp_path)


def test_so_does_an_ordered_dict(tmp_path):
    source = resave(save_checkpoint(tmp_path / "in", GQA, n_ranks=2), OrderedDict)
    assert_comes_back(source, tmp_path)
    record = json.loads((tmp_path / "hf" / RECORD).read_text())
    assert record["original"]["container"] == "OrderedDict"


def test_so_does_what_was_saved_from_a_gpu(tmp_path):
    with saving_from_a_gpu():
        source = save_checkpoint(tmp_path / "in", GQA, n_ranks=2)
    assert_comes_back(source, tmp_path)
    record = json.loads((tmp_path / "hf" / RECORD).read_text())
    assert record["original"]["location"] == "cuda:0"


def test_so_do_frequencies_of_another_dtype_and_values_between_the_tensors(tmp_path):
    """What lies in a storage beside the model's tensors is kept as it is."""

    def change(rank):
        rank["rope.freqs"] = torch.arange(4, dtype=torch.float32)
        flat = torch.arange(GQA.dim + 9, dtype=torch.bfloat16)
        flat[7:-2] = rank["norm.weight"]
        return {**rank, "norm.weight": flat[7:-2]}

    source = resave(save_checkpoint(tmp_path / "in", GQA, n_ranks=2), change)
    assert_comes_back(source, tmp_path)


def test_so_does_the_trained_example(tmp_path):
    source = shutil.copytree(ROOT / "examples" / "tiny-codellama", tmp_path / "in")
    for path in source.iterdir():
        if path.suffix not in (".pth", ".model") and path.name != "params.json":
            path.unlink()
    assert sorted(content(source)) == [
        "consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"
    ]  # fmt: skip
    assert_comes_back(source, tmp_path)


@needs_old_torch
@pytest.mark.parametrize("name", ["consolidated.00.pth", "buffer.pth"])
def test_so_do_the_files_of_torch_1_13(tmp_path, name):
    """They were saved when Meta saved its own; the layer's storage begins with five other values."""
    source = tmp_path / "in"
    source.mkdir()
    shutil.copyfile(SHARED / "data" / "old-torch" / name, source / "consolidated.00.pth")
    params = '{"dim": 16, "n_layers": 1,\t"n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-05}\r\n'
    (source / "params.json").write_bytes(params.encode())
    assert_comes_back(source, tmp_path, skip_tokenizer=True)
    original = json.loads((tmp_path / "hf" / RECORD).read_text())["original"]
    assert original["torch_layout"] == "1.13"
    assert len(original["rest"][0]) == 2 * (4 + 10)  # two frequencies, five values


@pytest.mark.parametrize("storage", ["own", "flat"])
@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_so_do_any_number_of_such_files(tmp_path, n_ranks, storage):
    """Put together by hand in the tests, whose writer is compared with the files above."""
    state = random_model(WIDE, torch.bfloat16, 5, special_values=True)
    source = save_checkpoint(tmp_path / "in", WIDE, state, n_ranks=n_ranks, storage=storage)
    before = content(source)
    resave_as_old_torch(source)
    assert all(content(source)[name] != raw for name, raw in before.items() if ".pth" in name)
    assert_comes_back(source, tmp_path)
    original = json.loads((tmp_path / "hf" / RECORD).read_text())["original"]
    assert original["torch_layout"] == "1.13"


@needs_shared
@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_so_do_trained_weights(tmp_path, n_ranks):
    tool = SHARED / "tools" / "build_stories260k.py"
    command = [sys.executable, tool, tmp_path / "in", "--shards", str(n_ranks)]
    subprocess.run(command, check=True, capture_output=True)
    assert_comes_back(tmp_path / "in", tmp_path, max_position_embeddings=512)
