"""Ranks that do not come back byte for byte: saved otherwise, changed since, or asked to differ."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from codellama_convert import verify_output
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.ranks.round_trips import EQUAL, RECORD, back, resave, there
from tests.outputs import content
from tests.witness.checkpoints import GQA


def rezipped(source: Path) -> None:
    path = source / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def as_parameters(source: Path) -> None:
    def change(rank):
        return {name: torch.nn.Parameter(value) for name, value in rank.items()}

    resave(source, change)


def transposed(source: Path) -> None:
    def change(rank):
        name = "layers.0.attention.wq.weight"
        return {**rank, name: rank[name].t().contiguous().t()}

    resave(source, change)


def with_state(source: Path) -> None:
    """As the state dict of a module is saved: with the versions of its modules."""

    def change(rank):
        rank = OrderedDict(rank)
        rank._metadata = {"": {"version": 1}}
        return rank

    resave(source, change)


def in_two_orders(source: Path) -> None:
    path = source / "consolidated.01.pth"
    rank = torch.load(path, weights_only=True)
    torch.save(dict(reversed(rank.items())), path)


def long_params(source: Path) -> None:
    path = source / "params.json"
    path.write_bytes(path.read_bytes() + b" " * 8192)


def overlapping(source: Path) -> None:
    def change(rank):
        return {**rank, "layers.0.ffn_norm.weight": rank["layers.1.ffn_norm.weight"]}

    resave(source, change)


def tied(source: Path) -> None:
    def change(rank):
        return {name: value for name, value in rank.items() if name != "output.weight"}

    resave(source, change)


def with_a_long_gap(source: Path) -> None:
    def change(rank):
        flat = torch.zeros(GQA.dim + 20_000, dtype=torch.bfloat16)
        flat[: GQA.dim] = rank["norm.weight"]
        return {**rank, "norm.weight": flat[: GQA.dim]}

    resave(source, change)


@pytest.mark.parametrize(
    "change",
    [
        rezipped, as_parameters, transposed, with_state, in_two_orders, long_params,
        overlapping, tied, with_a_long_gap,
    ],
)  # fmt: skip
def test_what_torch_would_not_write_again_is_not_promised(source, tmp_path, change):
    """The weights come back; the bytes around them do not, and nothing says that they would."""
    change(source)
    folder = there(source, tmp_path)
    assert "original" not in json.loads((folder / RECORD).read_text())
    files, notes = back(folder, tmp_path, n_ranks=2)
    assert EQUAL not in notes
    assert files != content(source)
    *_, note = plan_reverse(folder).notes
    assert "does not say how the ranks were saved" in note
    assert "as PyTorch 1.13 writes them" in note


def test_what_was_cast_is_not_promised(source, tmp_path):
    folder = there(source, tmp_path, dtype="float32")
    assert "original" not in json.loads((folder / RECORD).read_text())


@pytest.mark.parametrize(
    "asked", [{"n_ranks": 1}, {"torch_layout": "1.13"}, {"dtype": "float32"}, {"rope_freqs": False}]
)
def test_what_is_asked_for_comes_first(source, tmp_path, asked):
    job = plan_reverse(there(source, tmp_path), ReverseOptions(**asked))
    assert job.original is None
    assert not job.notes
    assert RECORD not in job.fingerprint()
    assert RECORD in plan_reverse(tmp_path / "hf").fingerprint()
    for same in ({"n_ranks": 2}, {"torch_layout": "2.13"}, {"dtype": "bfloat16"}):
        assert plan_reverse(tmp_path / "hf", ReverseOptions(**same)).original is not None


def test_without_a_record_the_layout_is_the_usual_one(source, tmp_path):
    folder = there(source, tmp_path)
    (folder / RECORD).unlink()
    job = plan_reverse(folder)
    assert job.torch_layout == "1.13"
    assert len(job.weight_files) == 1
    assert not job.notes  # no hub's folder has one


def test_weights_that_changed_since_are_written_and_said_to_be_others(source, tmp_path):
    folder = there(source, tmp_path)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    files, notes = back(folder, tmp_path)
    assert EQUAL not in notes
    assert "consolidated.00.pth is laid out as" in notes[-1]
    assert "has other bytes" in notes[-1]
    assert {name: len(one) for name, one in files.items()} == {
        name: len(one) for name, one in content(source).items()
    }


def test_a_changed_configuration_wins_over_the_record(source, tmp_path):
    """Otherwise the ranks would get a params.json of another rope_theta than the folder has."""
    folder = there(source, tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "rope_theta": 5000.0}))
    files, notes = back(folder, tmp_path)
    assert json.loads(files["params.json"])["rope_theta"] == 5000
    assert any("a params.json of another model" in note for note in notes)


@pytest.mark.parametrize("asked", [{"n_ranks": 1}, {"torch_layout": "1.13"}])
def test_verify_takes_from_the_ranks_that_they_are_others(source, tmp_path, asked):
    """The source's record would give the original back, and something else was asked for."""
    folder = there(source, tmp_path)
    back(folder, tmp_path, **asked)
    assert (
        verify_output(tmp_path / "ranks", plan_reverse(folder, ReverseOptions(**asked))).problems
        == ()
    )
    assert verify_output(tmp_path / "ranks", plan_reverse(folder)).problems == ()
    (tmp_path / "ranks" / RECORD).unlink()
    assert verify_output(tmp_path / "ranks", plan_reverse(folder)).problems == ()
