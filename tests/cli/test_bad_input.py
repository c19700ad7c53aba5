"""Bad input and wrong options are one line that says what, where and what to do."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.running import one_line, run
from tests.witness.checkpoints import GQA, save_checkpoint, tokenizer_model


def test_a_missing_tokenizer_is_an_error_that_tells_both_ways_out(checkpoint, tmp_path):
    moved = tmp_path / "elsewhere.model"
    (checkpoint / "tokenizer.model").rename(moved)
    line = one_line(run("--input_dir", checkpoint))
    for fact in ("tokenizer.model", "--tokenizer_model", "--skip_tokenizer"):
        assert fact in line
    named = run(
        "--input_dir", checkpoint, "--tokenizer_model", moved, "--output_dir", tmp_path / "named"
    )
    assert named.exit_code == 0
    assert (tmp_path / "named" / "tokenizer.model").read_bytes() == moved.read_bytes()
    without = run("--input_dir", checkpoint, "--skip_tokenizer", "--output_dir", tmp_path / "no")
    assert without.exit_code == 0
    assert not list((tmp_path / "no").glob("tok*"))
    line = one_line(run("--input_dir", checkpoint, "--model_size", "tokenizer_only"))
    assert line.endswith(
        "no tokenizer.model in the folder or beside it; give its path with --tokenizer_model"
    )


@pytest.mark.parametrize("folder", ["/", ".", "..", "below/", "../above/.."])
@pytest.mark.parametrize("what", [(), ("--model_size", "tokenizer_only")])
def test_a_folder_given_as_the_tokenizer_is_one_line(
    checkpoint, tmp_path, monkeypatch, folder, what
):
    """Of "/", which has no name, it was a traceback."""
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "above").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    line = one_line(run("--input_dir", checkpoint, "--tokenizer_model", folder, *what))
    assert line.startswith(f"Error: {Path(folder)}: is a folder, not a file")


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    (checkpoint / "tokenizer.model").write_bytes(tokenizer_model(GQA.vocab + 1))
    line = one_line(run("--input_dir", checkpoint))
    assert "321 pieces" in line
    assert "320 rows" in line


def corrupt(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "facts"),
    [
        (
            lambda d: corrupt(d / "params.json", b"<!DOCTYPE html><p>Sign in"),
            ["params.json", "HTML"],
        ),
        (lambda d: corrupt(d / "params.json", b""), ["params.json", "empty"]),
        (lambda d: corrupt(d / "params.json", b"{'dim': 3}"), ["params.json", "JSON"]),
        (
            lambda d: (d / "params.json").unlink(),
            ["params.json", "No such file", "it comes with the ranks"],
        ),
        (
            lambda d: corrupt(
                d / "params.json",
                (d / "params.json").read_bytes().replace(b'"n_layers": 2', b'"n_layers": 3'),
            ),
            ["consolidated.00.pth", "layers.2."],
        ),
        (lambda d: (d / "consolidated.01.pth").unlink(), ["consolidated.01.pth is missing"]),
        (
            lambda d: (d / "consolidated.01.pth").rename(d / "consolidated.1.pth"),
            ["consolidated.01.pth is missing", "consolidated.1.pth"],
        ),
        (
            lambda d: [p.rename(f"{p}.part") for p in d.glob("*.pth")],
            ["holds no consolidated.NN.pth", "consolidated.00.pth.part"],
        ),
        (
            lambda d: (d / "consolidated.03.pth").unlink(),
            ["consolidated.00.pth", "4 ranks", "3 were found", "download consolidated.03.pth"],
        ),
        (
            lambda d: shutil.copy(d / "tokenizer.model", d / "consolidated.04.pth"),
            ["consolidated.04.pth", "not a PyTorch zip archive"],
        ),
        (
            lambda d: corrupt(
                d / "params.json",
                (d / "params.json").read_bytes().replace(b'{"', b'{"vision_args": 128, "', 1),
            ),
            ["params.json", "vision_args", "Llama 4"],
        ),
        (
            lambda d: shutil.copy(d / "consolidated.00.pth", d / "consolidated.02.pth"),
            ["consolidated.02.pth", "consolidated.00.pth"],
        ),
        (
            lambda d: corrupt(
                d / "consolidated.02.pth", (d / "consolidated.02.pth").read_bytes()[:-100]
            ),
            ["consolidated.02.pth", "truncated"],
        ),
        (lambda d: corrupt(d / "consolidated.02.pth", b""), ["consolidated.02.pth", "empty"]),
        (lambda d: (d / "tokenizer.model").unlink(), ["tokenizer.model"]),
        (lambda d: corrupt(d / "tokenizer.model", b"\x00" * 99), ["tokenizer.model"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path, break_it, facts):
    checkpoint = save_checkpoint(tmp_path / "in", GQA, n_ranks=4)
    assert run("plan", "--input_dir", checkpoint).exit_code == 0
    break_it(checkpoint)
    line = one_line(run("--input_dir", checkpoint))
    for fact in facts:
        assert fact in line
    assert not (tmp_path / "in-hf").exists()


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
def test_an_unreadable_file_is_named(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "in", GQA)
    rank = checkpoint / "consolidated.00.pth"
    rank.unlink()
    rank.symlink_to("gone")
    assert "No such file" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    rank.symlink_to(rank)
    assert "symbolic links" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    os.mkfifo(rank)
    assert "not a regular file" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    rank.mkdir()
    assert "folder" in one_line(run("--input_dir", checkpoint))


def test_an_output_folder_that_cannot_be_made_is_one_line(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = one_line(run("--input_dir", checkpoint, "--output_dir", tmp_path / "file"))
    assert f"{tmp_path / 'file'}: is a file, not a folder; " in line
    line = one_line(run("--input_dir", checkpoint, "--output_dir", tmp_path / "file" / "out"))
    assert str(tmp_path / "file" / "out") in line
    if sys.platform == "linux":
        line = one_line(run("--input_dir", checkpoint, "--output_dir", "/proc/nowhere/out"))
        assert "/proc/nowhere/out" in line


def test_a_folder_that_is_no_checkpoint_of_metas_is_told_what_it_is(checkpoint, tmp_path):
    assert run("--input_dir", checkpoint).exit_code == 0
    line = one_line(run("plan", "--input_dir", checkpoint.with_name("CodeLlama-7b-hf")))
    for fact in ("CodeLlama-7b-hf", "model.safetensors", "Meta's layout"):
        assert fact in line
    (tmp_path / "empty").mkdir()
    line = one_line(run("plan", "--input_dir", tmp_path / "empty"))
    assert "holds no consolidated.NN.pth and no params.json;" in line
    line = one_line(run("plan", "--input_dir", checkpoint.parent, "--model_size", "34B"))
    assert "34B" in line
    assert "but CodeLlama-7b;" in line
    assert run("plan", "--input_dir", checkpoint.parent, "--model_size", "7B").exit_code == 0


def test_a_wrong_option_is_a_usage_error(checkpoint):
    for arguments in (
        ("--input_dir", checkpoint, "--dtype", "int8"),
        ("--input_dir", checkpoint, "--max_shard_size", "5XB"),
        ("--input_dir", checkpoint / "nowhere"),
        ("--input_dir", checkpoint / "params.json"),
    ):
        assert run(*arguments).exit_code == 2, arguments


@pytest.mark.parametrize("factor", ["nan", "inf", "0.5", "1025", "eight"])
def test_a_factor_that_is_none_is_a_usage_error_that_names_the_range(checkpoint, factor):
    """What is no number at all passed as a number, and was refused in the words of the library."""
    result = run("plan", checkpoint, "--rope_scaling_factor", factor)
    assert result.exit_code == 2
    assert f"'--rope_scaling_factor': '{factor}' is not a number from 1 to 1024" in result.stderr
    for allowed in ("1", "1024", "8.0"):
        assert (
            "is not a number"
            not in run("plan", checkpoint, "--rope_scaling_factor", allowed).stderr
        )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--skip_tokenizer",), ("--tokenizer_model", "x")),
        (("--skip_tokenizer",), ("--tokenizer_class", "LlamaTokenizer")),
        (("--skip_tokenizer",), ("--model_size", "tokenizer_only")),
        (("--model_size", "tokenizer_only"), ("--dtype", "float16")),
    ],
)
def test_options_that_contradict_each_other_are_refused(checkpoint, one, other):
    """One of them was passed over in silence."""
    both = run("--input_dir", checkpoint, *one, *other)
    assert both.exit_code == 2
    assert "contradict each other" in both.stderr
    assert all(option.lstrip("-") in both.stderr for option in (one[0], other[0]))
    assert "contradict" not in run("plan", "--input_dir", checkpoint, *one).stderr
