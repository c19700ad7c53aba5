"""How the ranks were saved, in a folder's conversion.json: what it holds, and what is forged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from codellama_convert import plan_conversion, verify_output
from codellama_convert.errors import VerifyError
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.ranks.round_trips import (
    RECORD,
    assert_comes_back,
    back,
    forge,
    resave,
    swap,
    there,
)
from tests.outputs import content
from tests.refusals import refused
from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.mark.parametrize(
    ("asked", "layout"),
    [({}, "1.13"), ({"n_ranks": 2}, "1.13"), ({"torch_layout": "2.13"}, "2.13")],
)
def test_a_record_that_cannot_be_used_is_said_whatever_is_asked_for(
    source, tmp_path, asked, layout
):
    """With --ranks or --torch_layout it was passed over in silence."""
    path = there(source, tmp_path) / RECORD
    for content_, fact in (
        (path.read_bytes()[:-9], "is not JSON"),
        (path.read_bytes() + b" ", "was changed after it was written"),
        (b'{"converter": {"name": "another"}}', "another program wrote it"),
        (b"{}", "another program wrote it"),
    ):
        path.write_bytes(content_)
        (note,) = plan_reverse(path.parent, ReverseOptions(**asked)).notes
        assert f"{RECORD} cannot be used (" in note
        assert fact in note
        assert note.endswith(f"as PyTorch {layout} writes them")


def test_verify_finds_each_byte_that_is_not_as_it_was(source, tmp_path):
    """Of params.json, of the frequencies, of the zip, of the record, and of a weight."""
    folder = there(source, tmp_path)
    back(folder, tmp_path)
    job = plan_reverse(folder)
    rank = (tmp_path / "ranks" / "consolidated.01.pth").read_bytes()
    freqs = torch.load(source / "consolidated.01.pth", weights_only=True)["rope.freqs"]
    places = {
        "params.json": 3,
        "consolidated.01.pth": rank.index(freqs.view(torch.uint8).numpy().tobytes()),
        "consolidated.00.pth": rank.index(b"ZZZZ"),
    }
    for name, at in places.items():
        path = tmp_path / "ranks" / name
        before = path.read_bytes()
        changed = bytearray(before)
        changed[at] ^= 1
        path.write_bytes(changed)
        for problems in (
            verify_output(tmp_path / "ranks", job).problems,
            verify_output(tmp_path / "ranks").problems,
        ):
            assert any(name in line for line in problems), (name, problems)
        path.write_bytes(before)
    forge(tmp_path / "ranks", lambda one: swap(one["order"]))
    problems = verify_output(tmp_path / "ranks", job).problems
    assert problems == (f"{RECORD}: original is not what the source says",)


def flip(original: dict) -> None:
    digits = original["rest"][0]
    original["rest"][0] = ("1" if digits[0] == "0" else "0") + digits[1:]


@pytest.mark.parametrize(
    ("change", "field"), [(lambda one: swap(one["order"]), "order"), (flip, "rest")]
)
def test_a_changed_record_is_noticed(source, tmp_path, change, field):
    folder = there(source, tmp_path)
    unsigned = shutil.copytree(folder, tmp_path / "unsigned")
    record = json.loads((unsigned / RECORD).read_text())
    change(record["original"])
    (unsigned / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    (note,) = plan_reverse(unsigned).notes
    assert "was changed after it was written" in note
    assert any("was changed" in line for line in verify_output(unsigned).problems)
    # Signed again, it is used: and what is written is not what was converted.
    forge(folder, change)
    files, notes = back(folder, tmp_path)
    assert files != content(source)
    assert "has other bytes" in notes[-1]
    report = verify_output(folder, plan_conversion(source))
    assert any(f"original: {field} is not as the ranks have it" in line for line in report.problems)


def put(key: str, value: object):
    return lambda original: original.__setitem__(key, value)


HOSTILE = {
    "a path as root": put("roots", ["../../../a", "../../../b"]),
    "an absolute root": put("roots", ["/etc/passwd", "/etc/shadow"]),
    "roots of two lengths": put("roots", ["a", "bc"]),
    "no roots": put("roots", []),
    "a thousand roots": put("roots", ["a"] * 1000),
    "a root for each of three": put("roots", ["a", "b", "c"]),
    "a location of code": put("location", "cpu\ncos\nsystem"),
    "another container": put("container", "list"),
    "another layout": put("torch_layout", "9.9"),
    "an unhashable layout": put("torch_layout", ["1.13"]),
    "huge storages": put("storages", [1 << 40] * 24),
    "storages without places": put("storages", [1]),
    "places without storages": put("places", ["0+0"]),
    "a negative place": put("places", ["-1+0"]),
    "numbers for places": put("places", [[0, 0]]),
    "no order": put("order", []),
    "a name twice": put("order", ["norm.weight"] * 24),
    "a foreign name": lambda one: one["order"].__setitem__(0, "evil.weight"),
    "a number in the order": lambda one: one["order"].__setitem__(0, 7),
    "a huge tensor beside": put("others", {"rope.freqs": {"dtype": "BF16", "shape": [1 << 39]}}),
    "many dimensions": put("others", {"rope.freqs": {"dtype": "BF16", "shape": [1] * 9}}),
    "an unknown dtype": put("others", {"rope.freqs": {"dtype": "I64", "shape": [4]}}),
    "a weight beside": put("others", {"norm.weight": {"dtype": "BF16", "shape": [64]}}),
    "too little rest": put("rest", ["00"]),
    "no rest": put("rest", []),
    "too much rest": put("rest", ["00" * 20_000]),
    "too much rest together": put("rest", ["00" * 10_000, "11" * 10_000]),
    "rest that is no hex": put("rest", ["0g" * 8]),
    "params of another model": put("params", '{"dim": 8}'),
    "params that are no text": put("params", 7),
    "a lone surrogate": put("params", "\ud800"),
    "huge params": put("params", " " * 9000),
    "an unknown key": put("command", "rm"),
    "a missing key": lambda one: one.pop("rest"),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder whose record lists everything: another order, and tensors in one storage."""
    place = tmp_path_factory.mktemp("converted")
    save_checkpoint(place / "in", GQA, n_ranks=2, storage="flat")
    return there(place / "in", place)


def test_the_record_that_is_forged_is_used_as_it_is(converted):
    assert all(json.loads((converted / RECORD).read_text())["original"].values())
    assert plan_reverse(converted).original is not None


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_is_not_used(converted, tmp_path, change):
    folder = shutil.copytree(converted, tmp_path / "hf")
    forge(folder, change)
    job = plan_reverse(folder)
    assert job.original is None
    assert any(f"{RECORD} cannot be used (" in note for note in job.notes)
    assert [file.name for file in job.weight_files] == ["consolidated.00.pth"]


@pytest.mark.parametrize("name", ["an unknown key", "no rest", "a negative place"])
def test_verify_refuses_it_too(converted, tmp_path, name):
    folder = shutil.copytree(converted, tmp_path / "hf")
    forge(folder, HOSTILE[name])
    with refused(VerifyError, RECORD, "original"):
        verify_output(folder)


def test_a_record_stays_small(source, tmp_path):
    """In Meta's order, each tensor with a storage of its own, nothing is listed."""
    order = [
        "tok_embeddings.weight", "norm.weight", "output.weight", "rope.freqs",
        *(
            f"layers.{n}.{one}.weight"
            for n in range(GQA.n_layers)
            for one in (
                "attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1",
                "feed_forward.w2", "feed_forward.w3", "attention_norm", "ffn_norm",
            )
        ),
    ]  # fmt: skip
    resave(source, lambda rank: {name: rank[name] for name in order})
    assert_comes_back(source, tmp_path)
    original = json.loads((tmp_path / "hf" / RECORD).read_text())["original"]
    params = (source / "params.json").read_text()
    assert original == {
        "container": "dict",
        "location": "cpu",
        "order": None,
        "others": {"rope.freqs": {"dtype": "BF16", "shape": [4]}},
        "params": params,
        "places": None,
        "rest": original["rest"],
        "roots": ["consolidated.00", "consolidated.01"],
        "storages": None,
        "torch_layout": "2.13",
    }
    freqs = torch.load(source / "consolidated.00.pth", weights_only=True)["rope.freqs"]
    assert original["rest"] == [freqs.view(torch.uint8).numpy().tobytes().hex()]
