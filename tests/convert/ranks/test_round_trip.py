"""Meta's files come back byte for byte: from ranks to a Hugging Face folder, and from it to ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from codellama_convert import (
    Options,
    convert_checkpoint,
    plan_conversion,
    reverse_checkpoint,
    verify_output,
)
from codellama_convert.errors import VerifyError
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.test_run import SHARED, needs_shared
from tests.formats.pth.saved_ranks import saving_from_a_gpu
from tests.outputs import content
from tests.refusals import refused
from tests.witness.checkpoints import (
    GQA,
    WIDE,
    random_model,
    save_checkpoint,
)
from tests.witness.old_torch import resave_as_old_torch

ROOT = Path(__file__).parents[3]
RECORD = "conversion.json"
EQUAL = "every rank has the size and the CRC-32 of the file that was converted"
LAID_OUT = f"the ranks get the layout that is recorded in {RECORD}"
needs_old_torch = pytest.mark.skipif(
    not (SHARED / "data" / "old-torch").is_dir(),
    reason="the files of PyTorch 1.13 in ../shared are not in this clone",
)


def there(source: Path, place: Path, **options: object) -> Path:
    """Convert into a Hugging Face folder, and look that verify finds nothing wrong with it."""
    convert_checkpoint(source, place / "hf", options=Options(**options))
    job = plan_conversion(source, Options(**options))
    assert verify_output(place / "hf", job).problems == ()
    assert verify_output(place / "hf").problems == ()
    return place / "hf"


def back(folder: Path, place: Path, **options: object) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Write the ranks of a folder, and return what is written and what is said."""
    report = reverse_checkpoint(folder, place / "ranks", options=ReverseOptions(**options))
    files = content(place / "ranks")
    del files[RECORD]
    return files, report.notes


def assert_comes_back(source: Path, place: Path, **options: object) -> None:
    skip = {"skip_tokenizer": True} if options.get("skip_tokenizer") else {}
    files, notes = back(there(source, place, **options), place, **skip)
    assert files == content(source)
    assert notes[-2:] == (LAID_OUT, EQUAL)
    assert (
        verify_output(place / "ranks", plan_reverse(place / "hf", ReverseOptions(**skip))).problems
        == ()
    )
    assert verify_output(place / "ranks").problems == ()


def resave(source: Path, change) -> Path:
    """Save each rank again, changed; from the same name, so with the same root."""
    for path in sorted(source.glob("*.pth")):
        torch.save(change(torch.load(path, weights_only=True)), path)
    return source


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


# --- what cannot come back, and what was asked otherwise -------------------------------------------


@pytest.fixture
def source(tmp_path):
    return save_checkpoint(tmp_path / "in", GQA, n_ranks=2)


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


# --- a stranger's record --------------------------------------------------------------------------


def forge(folder: Path, change) -> None:
    """Change how the ranks were saved, and sum the record up again."""
    path = folder / RECORD
    record = json.loads(path.read_text())
    change(record["original"])
    record["crc32"] = "0" * 8
    raw = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    record["crc32"] = f"{zlib.crc32(raw):08x}"
    path.write_bytes((json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def swap(items: list) -> None:
    items[0], items[1] = items[1], items[0]


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
