"""conversion.json says what an output was made of, and nothing of when, where or how fast."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from codellama_convert import (
    Options,
    RunOptions,
    __version__,
    convert_checkpoint,
    plan_conversion,
    verify_output,
)
from codellama_convert.convert.run import run
from codellama_convert.errors import Interrupted
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from codellama_convert.tensors import FLOAT16
from tests.faults.hostile.rank_bytes import RANK, SECOND
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

ROOT = Path(__file__).parents[2]
RECORD = "conversion.json"
ASKED = {"dtype": FLOAT16, "max_shard_bytes": 60_000, "checksums": "warn"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint with something to note of everything, and its record."""
    folder = tmp_path_factory.mktemp("provenance")
    state = random_model(GQA, torch.bfloat16, 5)
    state["norm.weight"][:3] = torch.tensor([float("nan"), float("inf"), 2e-8])
    state["layers.1.attention.wk.weight"][5, 6] = -1e-9
    model = save_checkpoint(folder / "llama-2-7b", GQA, state, n_ranks=2, params={"lr": None})
    (model / "optimizer.pth").write_bytes(b"")
    lines = [f"{'0' * 32}  {name}\n" for name in (RANK, "params.json", "consolidated.07.pth")]
    (model / "checklist.chk").write_text("".join(lines))
    (model / "tokenizer_checklist.chk").write_text("<html>Sign in</html>")
    convert_checkpoint(model, folder / "out", options=Options(**ASKED, workers=1))
    return folder


def record_of(output: Path) -> bytes:
    return (output / RECORD).read_bytes()


def test_the_record_says_what_the_output_was_made_of(place):
    record = json.loads(record_of(place / "out"))
    assert set(record) == {
        "converter", "crc32", "files", "model", "notes", "options", "source", "tensors",
    }  # fmt: skip
    assert record["converter"] == {"name": "codellama-convert", "version": __version__}
    assert record["options"] == {
        "dtype": "float16", "max_position_embeddings": 16384, "max_shard_size": 60_000,
        "skip_tokenizer": False, "tokenizer_class": "PreTrainedTokenizerFast", "variant": "base",
    }  # fmt: skip
    ranks = {name: (place / "llama-2-7b" / name).read_bytes() for name in (RANK, SECOND)}
    assert record["source"] == {
        name: {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"} for name, raw in ranks.items()
    }
    files = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    del files[RECORD]
    assert record["files"] == {
        name: {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"} for name, raw in files.items()
    }
    counts = {
        name: (entry.get("became_zero"), entry.get("nonfinite"))
        for name, entry in record["tensors"].items()
        if len(entry) > 5
    }
    assert counts == {
        "model.norm.weight": (1, 2),
        "model.layers.1.self_attn.k_proj.weight": (1, None),
    }


def test_the_record_has_a_sum_of_its_own_with_zeros_in_its_place(place):
    """A flipped bit in its notes or options was nobody's to see without the source."""
    raw = record_of(place / "out")
    line = f'  "crc32": "{json.loads(raw)["crc32"]}",\n'.encode()
    assert raw.count(line) == 1
    zeroed = raw.replace(line, b'  "crc32": "00000000",\n')
    assert json.loads(raw)["crc32"] == f"{zlib.crc32(zeroed):08x}"


def test_no_note_names_a_place(place):
    text = record_of(place / "out").decode()
    notes = json.loads(text)["notes"]
    for fact in (
        "tokenizer_checklist.chk was not used", "consolidated.07.pth", "no checklist.chk names",
        f"{RANK} does not match", "params.json does not match", "ignored optimizer.pth", "'lr'",
        "max_position_embeddings",
    ):  # fmt: skip
        assert any(fact in note for note in notes), fact
    for part in (str(place), place.name, platform.node(), "/"):
        assert part not in text, part


@pytest.mark.parametrize(
    "how",
    [
        {"workers": 3, "tile_bytes": 1},
        {"workers": 8, "tile_bytes": 700, "io_mode": "buffered"},
        {"workers": 2, "max_ram_bytes": 1 << 20},
        {"model_size": "13B"},  # no such size, but as many ranks: a note less would tell the tool
    ],
)
def test_the_record_does_not_depend_on_how_the_bytes_are_moved(place, tmp_path, how):
    convert_checkpoint(place / "llama-2-7b", tmp_path / "out", options=Options(**ASKED, **how))
    same = record_of(tmp_path / "out") == record_of(place / "out")
    assert same is ("model_size" not in how), "the control, another note, must make a difference"


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_the_record_does_not_depend_on_the_place(place, tmp_path, monkeypatch):
    """Another folder, a relative name, a link, another process with other hashes of strings."""
    model = tmp_path / "deeper" / "llama-2-7b"
    model.mkdir(parents=True)
    for path in (place / "llama-2-7b").iterdir():
        shutil.copyfile(path, model / path.name)
    monkeypatch.chdir(model)
    (tmp_path / "link").symlink_to(model)
    for number, given in enumerate(
        (Path(), Path("../llama-2-7b"), tmp_path / "link", model.parent)
    ):
        output = tmp_path / f"out-{number}"
        convert_checkpoint(given, output, options=Options(**ASKED))
        assert record_of(output) == record_of(place / "out"), given
    finished = subprocess.run(
        [
            sys.executable, "-m", "codellama_convert", "--output_dir", str(tmp_path / "other"),
            "--input_dir", ".", "--dtype", "fp16", "--max_shard_size", "60000",
            "--checksums", "warn", "--quiet",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert record_of(tmp_path / "other") == record_of(place / "out")


@pytest.mark.parametrize("after", [1, 5, 12])
def test_the_record_of_a_run_that_was_resumed_is_the_same(place, tmp_path, after):
    job = plan_conversion(place / "llama-2-7b", Options(**ASKED, workers=1, tile_bytes=5000))
    stop, seen = StopRequest(), []

    def progress(n_bytes: int) -> None:
        seen.append(n_bytes)
        if len(seen) == after:
            stop.ask(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(job, tmp_path / "out", watch=Watch(progress, stop))
    assert not (tmp_path / "out" / RECORD).exists()
    run(job, tmp_path / "out")
    assert record_of(tmp_path / "out") == record_of(place / "out")


def test_digests_are_added_when_asked_for_and_change_nothing_else(place, tmp_path):
    options = Options(**ASKED)
    asked = RunOptions(sha256=True, model_card=True)
    convert_checkpoint(place / "llama-2-7b", tmp_path / "out", options=options, run_options=asked)
    record = json.loads(record_of(tmp_path / "out"))
    assert "README.md" not in record["files"]  # it is for people, who may edit it
    for name, entry in record["files"].items():
        raw = (tmp_path / "out" / name).read_bytes()
        assert entry.pop("sha256") == hashlib.sha256(raw).hexdigest()
    other = json.loads(record_of(place / "out"))
    assert record.pop("crc32") != other.pop("crc32")
    assert record == other


def test_the_record_is_true_with_and_without_its_source(place):
    job = plan_conversion(place / "llama-2-7b", Options(checksums="warn"))
    assert verify_output(place / "out").problems == ()
    assert verify_output(place / "out", job).problems == ()
