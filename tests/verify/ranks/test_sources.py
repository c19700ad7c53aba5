"""Ranks of every kind of source are verified: what each was made of, and one bit of each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codellama_convert import Options, convert_checkpoint, verify_output
from codellama_convert.convert.run import run
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.verify.ranks.folder import holds_ranks
from tests.witness.checkpoints import (
    WIDE,
    int_dtype,
    random_model,
    save_checkpoint,
    tokenizer_model,
)

SHARED = Path(__file__).parents[4] / "shared"
PIECES = tokenizer_model(WIDE.vocab)


def write(source: Path, target: Path, **options: Any) -> Path:
    run(plan_reverse(source, ReverseOptions(**options)), target)
    return target


def assert_verified(source: Path, target: Path, **options: Any) -> None:
    """It is right; and with one bit changed in any rank it is not."""
    job = plan_reverse(source, ReverseOptions(**options))
    report = verify_output(target, job)
    assert report.problems == verify_output(target).problems == ()
    assert report.against == "source"
    (target / "conversion.json").rename(target / "record")
    assert verify_output(target, job).problems == ()
    ranks = sorted(target.glob("*.pth"))
    for number, path in enumerate(ranks):
        raw = path.read_bytes()
        loaded = torch.load(path, weights_only=True)
        # One that is split, one whose rows are rotary, and a copy. A tied head is the later one.
        for name in ("output.weight", "layers.0.attention.wk.weight", "norm.weight"):
            bits = loaded[name].view(int_dtype(loaded[name].dtype)).view(-1)
            needle = loaded[name].contiguous().view(torch.uint8).numpy().tobytes()
            at = raw.rindex(needle) + (bits.numel() - 1 - number) * loaded[name].element_size()
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            found = verify_output(target, job).problems
            assert any(line.startswith(f"{path.name}: tensor {name!r} differs") for line in found)
        path.write_bytes(raw)
    (target / "record").rename(target / "conversion.json")
    assert verify_output(target, job).problems == ()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One model in 1, 2, 4 and 8 ranks, and in Hugging Face's format in one file and in many."""
    folder = tmp_path_factory.mktemp("sources")
    state = random_model(WIDE, torch.bfloat16, seed=21, special_values=True)
    for n_ranks in (1, 2, 4, 8):
        save_checkpoint(folder / str(n_ranks), WIDE, state, n_ranks=n_ranks, tokenizer=PIECES)
    convert_checkpoint(folder / "2", folder / "one")
    convert_checkpoint(folder / "2", folder / "many", options=Options(max_shard_bytes=90_000))
    return folder


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (2, 4), (4, 2), (8, 8)])
def test_ranks_that_got_another_number_are_compared_with_those_before(
    place, tmp_path, before, after
):
    """Every row and column of one split is found in the other, in small tiles."""
    small = {"max_ram_bytes": 120_000, "workers": 1}
    source = place / str(before)
    write(source, tmp_path / "out", n_ranks=after)
    assert_verified(source, tmp_path / "out", **small)


def test_frequencies_are_compared_with_those_of_the_ranks_before(place, tmp_path):
    """Whatever wrote them, they are kept, and said to be the source's and not those of theta."""
    write(place / "2", tmp_path / "out", n_ranks=4)
    path = tmp_path / "out" / "consolidated.03.pth"
    whole = torch.load(path, weights_only=True)["rope.freqs"].view(torch.int16).numpy().tobytes()
    raw = path.read_bytes()
    at = raw.index(whole) + 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    found = verify_output(tmp_path / "out", plan_reverse(place / "2")).problems
    (line,) = [one for one in found if "'rope.freqs' has bits" in one]
    assert line.startswith("consolidated.03.pth: ")
    assert line.endswith("as the source has it")


@pytest.mark.parametrize(("source", "n_ranks"), list(product(("one", "many"), (1, 8))))
def test_ranks_of_a_hugging_face_folder_are_compared_with_it(place, tmp_path, source, n_ranks):
    write(place / source, tmp_path / "out", n_ranks=n_ranks)
    assert_verified(place / source, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("source", ["one", "4"])
def test_a_cast_is_compared_with_torchs_own(place, tmp_path, source, dtype):
    state = random_model(WIDE, torch.bfloat16, seed=22)
    state["norm.weight"][:4] = torch.tensor([float("nan"), -float("inf"), 1e-9, -0.0])
    if source == "4":
        save_checkpoint(tmp_path / "in", WIDE, state, n_ranks=4, tokenizer=PIECES)
    else:
        save_checkpoint(tmp_path / "meta", WIDE, state, tokenizer=PIECES)
        convert_checkpoint(tmp_path / "meta", tmp_path / "in")
    write(tmp_path / "in", tmp_path / "out", n_ranks=2, dtype=dtype)
    assert_verified(tmp_path / "in", tmp_path / "out")


def test_tensors_of_several_dtypes_are_each_compared_with_their_cast(place, tmp_path):
    shutil.copytree(place / "one", tmp_path / "mixed")
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() * 1.0001
    save_file(tensors, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    write(tmp_path / "mixed", tmp_path / "out", n_ranks=2, dtype="bfloat16")
    assert_verified(tmp_path / "mixed", tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize("of", ["hf", "meta"])
def test_a_head_that_is_the_embedding_is_compared_as_a_matrix_of_its_own(tmp_path, of):
    state = random_model(WIDE, torch.bfloat16, seed=23)
    del state["output.weight"]
    save_checkpoint(tmp_path / "meta", WIDE, state, n_ranks=2, tokenizer=PIECES)
    convert_checkpoint(tmp_path / "meta", tmp_path / "hf")
    write(tmp_path / of, tmp_path / "out", n_ranks=4)
    assert_verified(tmp_path / of, tmp_path / "out")


def test_rows_that_were_left_out_need_not_be_said_again(place, tmp_path):
    shutil.copytree(place / "one", tmp_path / "padded")
    (tmp_path / "padded" / "tokenizer.model").write_bytes(tokenizer_model(304))
    write(tmp_path / "padded", tmp_path / "out", vocab_rows=304, n_ranks=2)
    assert_verified(tmp_path / "padded", tmp_path / "out", vocab_rows=304)
    job = plan_reverse(tmp_path / "padded", ReverseOptions(vocab_rows=304, n_ranks=2))
    (tmp_path / "out" / "conversion.json").unlink()
    whole = plan_reverse(place / "one", ReverseOptions(n_ranks=2))
    assert verify_output(tmp_path / "out", job).problems == ()
    (first, *_) = verify_output(tmp_path / "out", whole).problems
    assert "'output.weight' has shape (152, 128), expected (160, 128)" in first


def test_a_tokenizer_of_another_number_of_pieces_is_a_difference(place, tmp_path):
    """Meta's loader makes as many rows as there are pieces, and takes what fits without a word."""
    write(place / "one", tmp_path / "out", n_ranks=1, skip_tokenizer=True)
    job = plan_reverse(place / "one", ReverseOptions(skip_tokenizer=True))
    assert verify_output(tmp_path / "out", job).problems == ()
    (tmp_path / "out" / "tokenizer.model").write_bytes(tokenizer_model(304))
    for found in (verify_output(tmp_path / "out", job), verify_output(tmp_path / "out")):
        assert any("tokenizer.model is in the folder" in line for line in found.problems)


def test_what_a_folder_holds_decides_how_it_is_verified(place, tmp_path):
    write(place / "one", tmp_path / "out")
    assert holds_ranks(tmp_path / "out")
    assert holds_ranks(place / "8")
    assert not holds_ranks(place / "one")
    assert not holds_ranks(place / "many")
    (tmp_path / "out" / "consolidated.00.pth").unlink()
    assert holds_ranks(tmp_path / "out"), "params.json is left"


@pytest.mark.skipif(not SHARED.exists(), reason="the shared material is not here")
@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_the_ranks_of_stories260k_are_those_it_came_in(tmp_path, n_ranks):
    tool = SHARED / "tools" / "build_stories260k.py"
    subprocess.run([sys.executable, tool, tmp_path / "in", "--shards", "2"], check=True)
    convert_checkpoint(tmp_path / "in", tmp_path / "hf")
    for source in ("hf", "in"):
        write(tmp_path / source, tmp_path / f"of-{source}", n_ranks=n_ranks)
        assert_verified(tmp_path / source, tmp_path / f"of-{source}")
