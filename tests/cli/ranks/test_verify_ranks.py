"""The command verify where OUT is a folder of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint
from tests.cli.running import run
from tests.outputs import flip_bit
from tests.witness.checkpoints import GQA, random_model, save_checkpoint
from tests.witness.vocabularies import parsed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify-ranks")
    save_checkpoint(folder / "meta", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)
    convert_checkpoint(folder / "meta", folder / "hf")
    asked = ["--ranks", 4, "--torch_layout", "2.13", "--dtype", "fp16", "--no_rope_freqs"]
    done = run("reverse", folder / "hf", folder / "out", "--verify", "--quiet", *asked)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def out(place, tmp_path):
    return Path(shutil.copytree(place / "out", tmp_path / "out"))


def test_what_was_asked_for_need_not_be_said_again(place):
    for words, against in (
        ([place / "hf", place / "out"], "its source"),
        ([place / "out"], "conversion.json"),
    ):
        done = run("verify", *words)
        assert done.exit_code == 0, done.output
        assert f"equals {against}: 21 tensors" in done.stdout
    again = ["--ranks", 4, "--torch_layout", "2.13", "--dtype", "fp16", "--no_rope_freqs"]
    assert run("verify", place / "hf", place / "out", *again).exit_code == 0
    assert run("verify", place / "out", *again, "--vocab_rows", 320).exit_code == 0


# Every option that speaks of ranks, and what it differs in.
@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize(
    ("said", "fact"),
    [
        (["--skip_tokenizer"], "skip_tokenizer is false, expected true"),
        (["--vocab_rows", 160], "vocab_rows is 320, expected 160"),
        (["--ranks", 2], "ranks is 4, expected 2"),
        (["--torch_layout", "1.13"], 'torch_layout is "2.13", expected "1.13"'),
        (["--dtype", "bf16"], 'dtype is "float16", expected "bfloat16"'),
    ],
)
def test_an_option_that_says_otherwise_is_a_difference(place, said, fact, with_source):
    words = [place / "hf"] if with_source else []
    done = run("verify", *words, place / "out", *said)
    assert done.exit_code == 1
    assert fact in done.stdout or "... and" in done.stdout, done.stdout
    assert "DIFFERS from" in done.stdout


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        (["--vocab_rows", 319], "vocab_size 319 cannot be split over 4 ranks"),
        (["--vocab_rows", 640], "640 rows are more than its 320"),
        (["--ranks", 3], "4 key and value heads cannot be split over 3 ranks"),
    ],
)
def test_what_cannot_be_is_a_difference_too(place, said, fact):
    """It ended in an error, as if the source could not be read, and nothing was compared."""
    done = run("verify", place / "hf", place / "out", *said)
    assert done.exit_code == 1
    assert "Error" not in done.stderr
    said_line, last = done.stdout.splitlines()
    assert said_line == f"no such ranks can be written from the source: {fact}"
    assert "DIFFERS from its source: 21 tensors" in last


def test_notes_are_on_the_source_and_not_on_what_would_be_written(place, tmp_path):
    """It said which layout the ranks get, as if they were written now."""
    assert "note: the ranks get the layout" in run("reverse", place / "hf", tmp_path / "out").stderr
    assert run("verify", place / "hf", tmp_path / "out").stderr == ""
    told = json.loads(run("verify", place / "hf", tmp_path / "out", "--json").stdout)
    assert told["notes"] == []
    (place / "hf" / "pytorch_model.bin").touch()  # a note on the source stays
    try:
        assert (
            "note: ignored pytorch_model.bin"
            in run("verify", place / "hf", tmp_path / "out").stderr
        )
    finally:
        (place / "hf" / "pytorch_model.bin").unlink()


def test_frequencies_that_should_not_be_there_are_a_difference(place, tmp_path):
    done = run("reverse", place / "hf", tmp_path / "out", "--quiet")
    assert done.exit_code == 0, done.output
    for words in ([place / "hf"], []):
        assert run("verify", *words, tmp_path / "out").exit_code == 0
        done = run("verify", *words, tmp_path / "out", "--no_rope_freqs")
        assert done.exit_code == 1
        assert "options: rope_freqs is true, expected false" in done.stdout


def test_how_the_source_is_read_is_used_with_it_and_refused_without(place, tmp_path):
    other = tmp_path / "other.model"
    model = parsed((place / "hf" / "tokenizer.model").read_bytes())
    model.pieces[-1].score -= 1
    other.write_bytes(model.SerializeToString())
    for words, fact in (
        (["--tokenizer_model", other], "tokenizer.model: is not"),
        (["--max_ram", "100B"], "--max_ram 100 bytes is too small"),
    ):
        done = run("verify", place / "hf", place / "out", *words)
        assert done.exit_code == 1, done.output
        assert fact in done.output
        refused = run("verify", place / "out", *words)
        assert refused.exit_code == 2
        assert f"{words[0]} is of no use without the source" in refused.stderr
    how = ["--io", "buffered", "--workers", 3, "--max_ram", "1MB"]
    assert run("verify", place / "hf", place / "out", *how).exit_code == 0
    assert run("verify", place / "out", *how[:4]).exit_code == 0


def test_a_damaged_rank_is_reported_by_its_file(place, out):
    flip_bit(out / "consolidated.02.pth", 20_000)
    for words in ([place / "hf", out], [out]):
        done = run("verify", *words, "--json")
        assert done.exit_code == 1
        described = json.loads(done.stdout)
        assert described["ok"] is False
        assert all(line.startswith("consolidated.02.pth: ") for line in described["problems"])


@pytest.mark.parametrize(
    "option",
    [
        ["--variant", "chat"],
        ["--max_shard_size", "1GB"],
        ["--max_position_embeddings", 16],
        ["--tokenizer_class", "LlamaTokenizer"],
        ["--model_size", "7B"],
        ["--checksums", "warn"],
        ["--weights_only"],
    ],
)
def test_what_says_nothing_of_ranks_is_refused(place, option):
    done = run("verify", place / "hf", place / "out", *option)
    assert done.exit_code == 2
    assert f"{option[0]} is of no use where OUT holds ranks" in done.stderr


@pytest.mark.parametrize(
    "option",
    [["--ranks", 1], ["--torch_layout", "1.13"], ["--no_rope_freqs"], ["--vocab_rows", 320]],
)
def test_what_says_nothing_of_a_hugging_face_folder_is_refused(place, option):
    assert run("verify", place / "meta", place / "hf").exit_code == 0
    done = run("verify", place / "meta", place / "hf", *option)
    assert done.exit_code == 2
    assert f"{option[0]} is of no use where OUT holds no ranks" in done.stderr


def test_a_resharded_folder_is_compared_with_the_ranks_it_came_from(place, tmp_path):
    done = run("reverse", place / "meta", tmp_path / "one", "--ranks", 1, "--verify", "--quiet")
    assert done.exit_code == 0, done.output
    assert run("verify", place / "meta", tmp_path / "one").exit_code == 0
    flip_bit(tmp_path / "one" / "consolidated.00.pth", 20_000)
    done = run("verify", place / "meta", tmp_path / "one")
    assert done.exit_code == 1
    assert "of consolidated.0" in done.stdout
