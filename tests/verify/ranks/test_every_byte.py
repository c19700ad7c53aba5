"""Every byte of a folder of ranks is compared: with its source, and with its own record."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint
from codellama_convert.convert.run import run
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.run_options import RunOptions
from tests.faults.hostile.rank_bytes import TINY
from tests.verify.damage import RECORD, change, changes, missed, told
from tests.witness.checkpoints import random_model, save_checkpoint, tokenizer_model

SECOND = "consolidated.01.pth"
# What is written of one model; each is damaged everywhere.
KINDS = {
    "as 1.13": ReverseOptions(n_ranks=2),
    "as 2.13": ReverseOptions(n_ranks=2, torch_layout="2.13", rope_freqs=False),
    "cast": ReverseOptions(n_ranks=1, dtype="float16"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with odd values, and ranks of it."""
    folder = tmp_path_factory.mktemp("rank-bytes")
    state = random_model(TINY, torch.bfloat16, 2)
    state["norm.weight"][:3] = torch.tensor([float("nan"), float("inf"), 1e-9])
    save_checkpoint(folder / "meta", TINY, state, tokenizer=tokenizer_model(TINY.vocab))
    convert_checkpoint(folder / "meta", folder / "hf")
    for kind, options in KINDS.items():
        job = plan_reverse(folder / "hf", options)
        run(job, folder / kind, RunOptions(sha256=kind == "cast"))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def output(place, kind, tmp_path):
    return Path(shutil.copytree(place / kind, tmp_path / "out"))


@pytest.fixture(scope="module")
def job(place):
    return plan_reverse(place / "hf")


def regions(rank: Path) -> list[range]:
    """Cut a rank at its storages, as torch finds them: what is data, and what lies around it."""
    loaded = torch.load(rank, weights_only=True, mmap=True)
    first = min(tensor.data_ptr() for tensor in loaded.values())
    raw = rank.read_bytes()
    begin = next(tensor for tensor in loaded.values() if tensor.data_ptr() == first)
    at = raw.index(begin.view(torch.int16).numpy().tobytes())
    spans = [
        (at + tensor.data_ptr() - first, tensor.numel() * tensor.element_size())
        for tensor in loaded.values()
    ]
    cuts = sorted({0, len(raw), *(n for start, size in spans for n in (start, start + size))})
    return [range(start, stop) for start, stop in pairwise(cuts)]


def samples(region: range, draw: random.Random) -> Iterator[int]:
    yield from {region[0], draw.choice(region)}


def test_a_byte_in_any_region_of_a_rank_counts(output, job, kind):
    """Headers, padding, pickle, each tensor, descriptors, directory: nothing is passed over."""
    assert told(output, job) == told(output) == []
    draw = random.Random(kind)
    ranks = sorted(output.glob("*.pth"))
    assert len(ranks) == KINDS[kind].n_ranks
    for rank in ranks:
        raw, cut = rank.read_bytes(), regions(rank)
        n_tensors = 12 if kind == "as 2.13" else 13
        assert len(cut) == 2 * n_tensors + 1
        places = {at for region in cut for at in samples(region, draw)}
        # The pickle before the first tensor, and the directory behind the last, are the longest.
        places.update(draw.sample(cut[0], 12), draw.sample(cut[-1], 12))
        for at in sorted(places):
            changed = raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :]
            assert missed(output, job, rank, changed) == [], at
        for changed in (raw[:-1], raw + b"\n", raw[1:], b""):
            assert missed(output, job, rank, changed) == []
    assert told(output, job) == told(output) == []


def test_a_byte_of_any_other_file_counts(output, job):
    for name in ("params.json", "tokenizer.model", RECORD):
        for what, changed in changes((output / name).read_bytes()):
            assert missed(output, job, output / name, changed) == [], (name, what)
    assert told(output, job) == told(output) == []


# --- the record, with a right sum of itself -------------------------------------------------------

NORM, HEAD = "norm.weight", "output.weight"


@pytest.fixture
def cast(place, tmp_path):
    return Path(shutil.copytree(place / "cast", tmp_path / "cast"))


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["tensors"][NORM].pop("nonfinite"), "nonfinite 2, the record says 0"),
        (lambda c: c["tensors"][NORM].update(nonfinite=3), "nonfinite 2, the record says 3"),
        (lambda c: c["tensors"][NORM].pop("became_zero"), "became_zero 1, the record says 0"),
        (lambda c: c["tensors"][HEAD].update(became_zero=1), "became_zero 0, the record says 1"),
        (lambda c: c["tensors"][NORM].update(crc32=["00000000"]), "the record says 00000000"),
        (lambda c: c["tensors"][NORM].update(crc32=[]), "'norm.weight' has 0 sums, expected 1"),
        (lambda c: c["tensors"][NORM].update(crc32="00000000"), "'norm.weight' in tensors is damaged"),
        (lambda c: c["tensors"][NORM].update(dtype="BF16"), "is BF16 (8,), expected F16 (8,)"),
        (lambda c: c["tensors"][HEAD].update(shape=[8, 300]), "expected F16 (300, 8)"),
        (lambda c: c["tensors"][NORM].update(file="x"), "has 'file', which does not belong there"),
        (lambda c: c["tensors"].pop(NORM), "'norm.weight' is missing, expected F16 (8,)"),
        (lambda c: c["tensors"].update(x=c["tensors"][NORM]), "'x' is F16 (8,), expected nothing"),
        (lambda c: c["files"]["consolidated.00.pth"].update(crc32="00000000"), "says 00000000"),
        (lambda c: c["files"]["consolidated.00.pth"].update(size=1), "the record says 1"),
        (lambda c: c["files"]["consolidated.00.pth"].update(sha256="0" * 64), "SHA-256"),
        (lambda c: c["files"]["params.json"].update(crc32="00000000"), "says 00000000"),
        (lambda c: c["files"].pop("tokenizer.model"), "its files lack tokenizer.model"),
        (lambda c: c["files"].update({SECOND: c["files"]["params.json"]}), f"files names {SECOND}"),
        (lambda c: c["options"].update(ranks=2), "split over 1 ranks, not over 2"),
        (lambda c: c["options"].update(ranks=65), "the option ranks is 65"),
        (lambda c: c["options"].update(dtype="bfloat16"), "float16, not bfloat16 as asked for"),
        (lambda c: c["options"].update(rope_freqs=False), "'rope.freqs' does not belong"),
        (lambda c: c["options"].update(skip_tokenizer=True), "tokenizer.model is in the folder"),
        (lambda c: c["options"].update(torch_layout="2.13"), "not laid out as PyTorch 2.13"),
        (lambda c: c["options"].update(vocab_rows=299), "has shape (300, 8), expected (299, 8)"),
        (lambda c: c["options"].update(more=1), "options: has more"),
        (lambda c: c["options"].pop("torch_layout"), "options: torch_layout is missing"),
        (lambda c: c["source"]["model.safetensors"].update(crc32="00000000"), "CRC-32 00000000"),
        (lambda c: c["source"].pop("model.safetensors"), "model.safetensors is missing"),
        (lambda c: c.update(model="Llama 2 7B"), "model is 'Llama 2 7B', expected None"),
    ],
)  # fmt: skip
def test_a_record_with_a_right_sum_of_itself_is_compared_with_the_source(cast, job, edit, fact):
    change(cast / RECORD, lambda content: None)
    assert told(cast, job) == told(cast) == [], "the control: the same record, sealed again"
    change(cast / RECORD, edit)
    assert any(fact in line for line in told(cast, job)), told(cast, job)
