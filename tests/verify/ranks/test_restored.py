"""Ranks that come back are those before: by the folder between, and by the ranks themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import convert_checkpoint, reverse_checkpoint, verify_output
from codellama_convert.formats.pth import saved_rank
from codellama_convert.plan.ranks import original, plan
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.outputs import content
from tests.verify.damage import RECORD, change, told
from tests.witness.checkpoints import GQA, random_model, save_checkpoint
from tests.witness.old_torch import resave_as_old_torch

FIRST, LAST = "consolidated.00.pth", "consolidated.01.pth"
# As Llama 2's own: the tokenizer says how many rows there are.
PARAMS = {"vocab_size": -1, "rope_theta": 1000000.0}


def come_back(place: Path, **how: Any) -> Path:
    """Save ranks ("in"), convert them ("hf"), and write them again ("out")."""
    state = random_model(GQA, torch.bfloat16, seed=31, special_values=True)
    save_checkpoint(place / "in", GQA, state, n_ranks=2, params=PARAMS, **how)
    convert_checkpoint(place / "in", place / "hf")
    reverse_checkpoint(place / "hf", place / "out")
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """With tensors in one storage, in the order of a module, and with frequencies in each layer."""
    return come_back(tmp_path_factory.mktemp("restored"), storage="flat", rope="inner")


@pytest.fixture
def out(place, tmp_path):
    return Path(shutil.copytree(place / "out", tmp_path / "out"))


@pytest.mark.parametrize("with_record", [True, False])
@pytest.mark.parametrize("source", ["in", "hf"])
@pytest.mark.parametrize(
    "how",
    [
        {"storage": "flat", "rope": "inner"},
        {"storage": "own", "rope": "top"},
        {"storage": "own", "rope": None},
    ],
)
def test_they_equal_the_ranks_before_and_the_folder_between(tmp_path, how, source, with_record):
    """Beside the ranks themselves, their order and `"vocab_size": -1` were said to be wrong."""
    come_back(tmp_path, **how)
    if not with_record:
        (tmp_path / "out" / RECORD).unlink()
    assert content(tmp_path / "in").items() <= content(tmp_path / "out").items(), "they do equal"
    report = verify_output(tmp_path / "out", plan_reverse(tmp_path / source))
    assert report.problems == ()
    assert report.n_tensors == 21
    noted = source == "in" and with_record
    assert [RECORD in note and "model.safetensors" in note for note in report.notes] == [
        True
    ] * noted


def test_so_do_those_that_an_older_torch_saved(tmp_path):
    state = random_model(GQA, torch.bfloat16, seed=32)
    resave_as_old_torch(save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2, rope="inner"))
    convert_checkpoint(tmp_path / "in", tmp_path / "hf")
    reverse_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert told(tmp_path / "out", plan_reverse(tmp_path / "in")) == []
    (tmp_path / "out" / RECORD).unlink()
    assert told(tmp_path / "out", plan_reverse(tmp_path / "in")) == []


def test_ranks_that_did_not_come_back_are_compared_with_what_torch_writes(place, tmp_path):
    """The same numbers in as many ranks: the record says that they were saved otherwise."""
    options = ReverseOptions(n_ranks=2)
    reverse_checkpoint(place / "in", tmp_path / "out", options=options)
    assert (tmp_path / "out" / FIRST).read_bytes() != (place / "in" / FIRST).read_bytes()
    assert told(tmp_path / "out", plan_reverse(place / "in")) == []
    shutil.copyfile(place / "in" / FIRST, tmp_path / "out" / FIRST)
    found = told(tmp_path / "out", plan_reverse(place / "in"))
    assert found
    assert all(line.startswith(FIRST) for line in found)


@pytest.mark.parametrize("source", ["in", "hf"])
def test_each_byte_beside_the_weights_is_compared(place, out, source):
    """In the pickle, between the weights, in the frequencies, in the directory."""
    job = plan_reverse(place / source)
    raw = (out / LAST).read_bytes()
    freqs = torch.load(out / LAST, weights_only=True)
    name = "layers.1.attention.inner_attention.rope.freqs"
    places = {
        "header": 0, "pickle": raw.index(b"wq.weight"), "padding": raw.index(b"ZZZZ"),
        "frequencies": raw.rindex(freqs[name].view(torch.uint8).numpy().tobytes()),
        "directory": raw.rindex(b"PK\1\2") + 46, "end": len(raw) - 1,
    }  # fmt: skip
    for what, at in places.items():
        (out / LAST).write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        found = told(out, job)
        assert found, what
        assert all(line.startswith(f"{LAST}: ") for line in found), (what, found)
    (out / LAST).write_bytes(raw)
    assert told(out, job) == []


@pytest.mark.parametrize("source", ["in", "hf"])
def test_how_a_record_says_that_they_were_saved_is_compared(place, out, source):
    change(out / RECORD, lambda one: None)
    assert told(out, plan_reverse(place / source)) == [], "the control: the same record"
    change(out / RECORD, lambda one: one["original"]["order"].reverse())
    found = told(out, plan_reverse(place / source))
    assert found == [f"{RECORD}: original is not what the source says"]


# --- params.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["in", "hf"])
@pytest.mark.parametrize(
    ("edit", "facts"),
    [
        (lambda one: one.pop("rope_theta"), ["rope_theta is 10000.0, expected 1000000.0"]),
        (lambda one: one.update(norm_eps=1e-6), ["norm_eps is 1e-06, expected 1e-05"]),
        (lambda one: one.update(vocab_size=320), ["vocab_size is 320, expected null"]),
        (lambda one: one.update(max_seq_len=7), ["the values are right, the spelling is not"]),
    ],
)
def test_a_value_of_params_json_that_differs_is_named(place, out, source, edit, facts):
    """It was "byte 31 is 0x32, expected 0x31"."""
    params = json.loads((out / "params.json").read_text())
    assert params["vocab_size"] == -1
    edit(params)
    (out / "params.json").write_text(json.dumps(params))
    (out / RECORD).unlink()
    found = told(out, plan_reverse(place / source))
    assert [line.split(": ", 1)[0] for line in found] == ["params.json"]
    assert all(fact in found[0] for fact in facts), found


# --- planted in the plan of what comes back -------------------------------------------------------

Saved = tuple[saved_rank.SavedRank, ...]


def swap_two_tensors(ranks: Saved) -> Saved:
    """Exchange the places of a query and a key projection's neighbours of equal shape."""

    def swapped(rank: saved_rank.SavedRank) -> saved_rank.SavedRank:
        names = {one.spec.name: number for number, one in enumerate(rank.tensors)}
        one, other = (names[f"layers.{n}.attention.wv.weight"] for n in (0, 1))
        tensors = list(rank.tensors)
        places = [tensors[number].storage_offset for number in (one, other)]
        tensors[one] = replace(tensors[one], storage_offset=places[1])
        tensors[other] = replace(tensors[other], storage_offset=places[0])
        return replace(rank, tensors=tuple(tensors))

    return tuple(map(swapped, ranks))


def plant_in_what_is_saved(patch: pytest.MonkeyPatch, spoil: Callable[[Saved], Saved]) -> None:
    real = original.Original.saved_ranks
    patch.setattr(
        original.Original, "saved_ranks", lambda self, model, n: spoil(real(self, model, n))
    )


def plant_in_the_rest(patch: pytest.MonkeyPatch) -> None:
    real = plan._placed_rest
    patch.setattr(plan, "_placed_rest", lambda one, spare, rest: real(one, spare, rest[::-1]))


PLANTED = {
    "the rest": plant_in_the_rest,
    "the root": lambda patch: plant_in_what_is_saved(
        patch, lambda ranks: tuple(replace(one, root="x" * len(one.root)) for one in ranks)
    ),
    "two roots": lambda patch: plant_in_what_is_saved(patch, lambda ranks: ranks[::-1]),
    "the container": lambda patch: plant_in_what_is_saved(
        patch, lambda ranks: tuple(replace(one, container="OrderedDict") for one in ranks)
    ),
    "two places": lambda patch: plant_in_what_is_saved(patch, swap_two_tensors),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_mistake_in_the_plan_of_what_comes_back_is_found(place, tmp_path, monkeypatch, plant):
    """The writer's own plan was what they were compared with, so it could have no mistake."""
    plant(monkeypatch)
    reverse_checkpoint(place / "hf", tmp_path / "out", options=ReverseOptions())
    assert (tmp_path / "out" / FIRST).read_bytes() != (place / "in" / FIRST).read_bytes()
    assert told(tmp_path / "out", plan_reverse(place / "hf")) != []
    monkeypatch.undo()
    assert told(tmp_path / "out", plan_reverse(place / "hf")) != []


def test_without_a_planted_mistake_nothing_is_found(place, tmp_path):
    """The control of the test above."""
    reverse_checkpoint(place / "hf", tmp_path / "out", options=ReverseOptions())
    assert told(tmp_path / "out", plan_reverse(place / "hf")) == []


def test_of_weights_that_changed_since_the_sums_before_say_nothing(place, tmp_path):
    """Their ranks have the layout of those before, and other bytes; a note says what was not done."""
    folder = Path(shutil.copytree(place / "hf", tmp_path / "hf"))
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    reverse_checkpoint(folder, tmp_path / "out")
    report = verify_output(tmp_path / "out", plan_reverse(folder))
    assert report.problems == ()
    (note,) = report.notes
    assert "weights changed since" in note
    # What was converted is another folder then.
    assert told(tmp_path / "out", plan_reverse(place / "hf")) != []


def test_a_forged_sum_of_the_ranks_before_is_found(place, out, tmp_path):
    """The control of the sums: they are compared, and not only read."""
    folder = Path(shutil.copytree(place / "hf", tmp_path / "hf"))
    change(folder / RECORD, lambda one: one["source"][LAST].update(crc32="00000000"))
    (out / RECORD).unlink()
    (line,) = told(out, plan_reverse(folder))
    assert line.startswith(f"{LAST}: has ")
    assert line.endswith("bytes and CRC-32 00000000")
