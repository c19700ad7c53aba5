"""Names from outside reach a terminal as text only: whatever they hold, and whatever it can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import ConfigError, one_line
from tests.outputs import ROOT, environment, on_a_terminal
from tests.witness.checkpoints import MHA, random_model, save_checkpoint

# Clears the screen, begins a second line, and turns the direction of what follows.
EVIL = "evil\x1b[2J\nnote: all is well\r\x9b1m\x7f\u202e\u2028"
EVIL_IN_WORDS = r"evil\x1b[2J\nnote: all is well\r\x9b1m\x7f\u202e\u2028"
NOT_UTF_8 = os.fsdecode(b"not utf-8 \xff\x9b")
NOT_UTF_8_IN_WORDS = r"not utf-8 \xff\x9b"
STREAMS = ("utf-8:strict", "ascii:strict", "latin-1:strict", "utf-8:surrogateescape")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names as POSIX has them")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain, and módelo ▁<PRE> 模型", "plain, and módelo ▁<PRE> 模型"),
        (EVIL, EVIL_IN_WORDS),
        (NOT_UTF_8, NOT_UTF_8_IN_WORDS),
        ("\ud800 \U000e0001", r"\ud800 \U000e0001"),
        ("zero\u200bwidth \u2066 \u00ad \ufeff", r"zero\u200bwidth \u2066 \xad \ufeff"),
        (EVIL_IN_WORDS, EVIL_IN_WORDS),
    ],
)
def test_what_does_not_print_is_escaped(text, line):
    assert one_line(text) == line


def test_no_character_of_any_kind_but_those_that_print_passes():
    every = "".join(map(chr, range(0x110000)))
    passed = {
        c for start in range(0, len(every), 500) for c in one_line(every[start : start + 500])
    }
    kinds = {unicodedata.category(c) for c in passed}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {"Lu", "Ll", "Lo", "Mn", "Po", "Sm"} <= kinds
    assert [c for c in passed if unicodedata.category(c) == "Zs"] == [" "]


def test_a_long_line_keeps_its_beginning_and_its_end():
    problem = ConfigError("is wrong", path="x" * 100_000, hint="do this")
    assert len(str(problem)) == 5_999
    assert str(problem).startswith("xxx")
    assert str(problem).endswith(": is wrong; do this")
    assert one_line("x" * 6_000) == "x" * 6_000
    assert one_line(one_line("x" * 6_001)) == one_line("x" * 6_001)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in a folder with such a name, beside files with such names that are ignored."""
    folder = tmp_path_factory.mktemp("printing") / f"CodeLlama {EVIL} {NOT_UTF_8}"
    save_checkpoint(folder, MHA, random_model(MHA, torch.bfloat16, 1))
    for name in (EVIL, NOT_UTF_8):
        (folder / f"{name}.pth").touch()
    return folder


def program(arguments: list[str], **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "codellama_convert", *arguments], check=False, cwd=ROOT,
        capture_output=True, env=environment(**more), timeout=120,
    )  # fmt: skip


def refuse_controls(printed: bytes) -> list[str]:
    """Refuse what a terminal would obey; return the lines."""
    text = printed.decode("latin-1" if b"\xf3" in printed else "utf-8")
    assert text.isprintable() or all(line.isprintable() for line in text.split("\n"))
    return text.split("\n")


@pytest.mark.parametrize("streams", STREAMS)
def test_every_command_prints_names_as_one_line_each(checkpoint, tmp_path, streams):
    """A file's name forged a second note; one that is not UTF-8 was a traceback, after the work."""
    target = tmp_path / f"módelo {EVIL} {NOT_UTF_8}"
    both = ["--input_dir", str(checkpoint), "--output_dir", str(target)]
    notes = [
        f"note: ignored {EVIL_IN_WORDS}.pth, {NOT_UTF_8_IN_WORDS}.pth",
        f"note: ignored {NOT_UTF_8_IN_WORDS}.pth, {EVIL_IN_WORDS}.pth",
    ]
    for words, last in (
        (["plan"], "in float32"),
        (["convert"], "note"),
        (["verify"], "equals the checkpoint"),
    ):
        done = program([*words, *both], PYTHONIOENCODING=streams)
        assert done.returncode == 0, done.stderr
        said = refuse_controls(done.stdout)
        assert last in "".join(said)
        lines = refuse_controls(done.stderr)
        assert lines.pop() == ""
        assert all(line.startswith("note: ") for line in lines)
        assert [line for line in lines if line in notes]
        assert "note: all is well" not in lines + said
    (target / "config.json").unlink()
    broken = program(["verify", *both], PYTHONIOENCODING=streams)
    assert broken.returncode == 1
    assert b"DIFFERS" in broken.stdout
    refuse_controls(broken.stdout)


@pytest.mark.parametrize("streams", STREAMS)
def test_json_says_the_same_names_and_nothing_raw(checkpoint, tmp_path, streams):
    target = tmp_path / f"módelo {EVIL} {NOT_UTF_8}"
    both = ["--input_dir", str(checkpoint), "--output_dir", str(target), "--json"]
    for words in ("plan", "convert", "verify"):
        done = program([words, *both], PYTHONIOENCODING=streams)
        assert done.returncode == 0, done.stderr
        refuse_controls(done.stdout)
        assert done.stdout.isascii()
        described = json.loads(done.stdout)
        name = "input_dir" if words == "plan" else "output_dir"
        assert described[name] == str(checkpoint if words == "plan" else target)
        assert any(EVIL_IN_WORDS in note for note in described["notes"])
        assert all(note.isprintable() for note in described["notes"])


def test_the_library_and_the_record_have_notes_of_one_line(checkpoint, tmp_path):
    report = convert_checkpoint(checkpoint, tmp_path / "out")
    recorded = json.loads((tmp_path / "out" / "conversion.json").read_bytes())["notes"]
    for notes in (report.notes, recorded):
        assert any(EVIL_IN_WORDS in note and NOT_UTF_8_IN_WORDS in note for note in notes)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(
    "arguments",
    [
        [EVIL],
        [f"{EVIL}/"],
        [f"--{EVIL}"],
        ["convert", "--input_dir", EVIL],
        ["convert", "--input_dir", NOT_UTF_8],
        ["plan", EVIL, NOT_UTF_8],
        ["plan", "--input_dir", ".", "--dtype", EVIL],
        ["plan", "--input_dir", ".", "--workers", EVIL],
        ["plan", "--input_dir", ".", "--max_ram", f"{EVIL} módelo 模型"],
        [f"--workers={EVIL}"],
    ],
)
def test_what_is_wrong_with_the_arguments_is_quoted_as_text(arguments, streams):
    done = program(arguments, PYTHONIOENCODING=streams)
    assert done.returncode == 2
    lines = refuse_controls(done.stderr)
    assert "note: all is well" not in lines
    assert [line for line in lines if line.startswith("Error: ")]
    assert done.stdout == b""


def test_no_arguments_at_all_show_the_help_in_many_lines():
    done = program([])
    assert done.returncode == 2
    assert len(done.stderr.splitlines() + done.stdout.splitlines()) > 40


@pytest.mark.parametrize("name", [EVIL, NOT_UTF_8])
def test_an_error_names_its_file_as_text(tmp_path, name):
    folder = save_checkpoint(tmp_path / name, MHA, random_model(MHA, torch.bfloat16, 1))
    (folder / "params.json").write_bytes(b"{")
    done = program(["plan", "--input_dir", str(folder)])
    assert done.returncode == 1
    (line, end) = refuse_controls(done.stderr)
    assert end == ""
    assert line.startswith("Error: ")
    assert one_line(name) in line


def test_a_terminal_gets_no_control_of_a_name(checkpoint, tmp_path):
    target = tmp_path / EVIL
    arguments = ["--input_dir", checkpoint, "--output_dir", target, "--verify"]
    status, printed = on_a_terminal(*arguments)
    assert status == 0, printed
    bars = printed.replace("\r\n", "\n").replace("\x1b[A", "")
    assert {c for c in bars if not c.isprintable()} <= {"\r", "\n"}
    assert "\nnote: all is well" not in bars.replace("\r", "\n")
    assert f"wrote {tmp_path}/{EVIL_IN_WORDS}: " in bars
