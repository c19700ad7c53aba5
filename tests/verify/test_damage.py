"""Every damage to an output is a problem of one line or one error, and never a traceback."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys

import pytest
from click.testing import CliRunner

from codellama_convert import Options, convert_checkpoint, plan_conversion
from codellama_convert.cli.commands import main
from codellama_convert.tensors import FLOAT16
from tests.faults.test_hostile import run_process
from tests.verify.damage import (
    INDEX,
    MODEL,
    NORM,
    RECORD,
    SMALL_FILES,
    change,
    entry,
    rewrite_header,
    told,
    without_record,
)
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize(
    ("damage", "reports"),
    [
        (lambda o: change(o / "config.json", lambda c: c.update(rope_theta="\ud800\n")), True),
        (lambda o: (o / "config.json").unlink(), True),
        (lambda o: (o / "a\n\x1b.safetensors").write_bytes(b""), True),
        (lambda o: change(o / RECORD, lambda c: c["tensors"].clear()), True),
        (lambda o: rewrite_header(o / MODEL, entry(data_offsets=[0.0, 128.0])), False),
        (lambda o: (o / MODEL).write_bytes(b""), False),
        (lambda o: (o / MODEL).unlink(), False),
        (lambda o: None, None),
    ],
)
def test_the_command_ends_in_a_report_or_in_one_line(
    place, one, damage, reports, with_source, as_json
):
    damage(one)
    arguments = ["verify", "--output_dir", str(one), *(["--json"] * as_json)]
    if with_source:
        arguments += ["--input_dir", str(place / "in")]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None)
    assert result.exit_code == (0 if reports is None else 1)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    if reports is False:
        if as_json:
            assert json.loads(result.stdout)["exit_status"] == 1
        else:
            assert result.stdout == ""
        (line,) = errors
        assert line.startswith("Error: ")
        return
    assert errors == []
    if as_json:
        described = json.loads(result.stdout)
        assert described["ok"] is (reports is None)
        assert bool(described["problems"]) is bool(reports)
    else:
        *problems, last = result.stdout.splitlines()
        assert bool(problems) is bool(reports)
        assert ("DIFFERS from" in last) is bool(reports)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", RECORD, INDEX, MODEL])
def test_a_million_empty_lists_cost_no_more_than_30_mb(place, one, name):
    """A file of 100 MB, of which json makes 2 GB, was parsed. The program alone takes 40 MB."""
    n_bytes = 60_000 if name == "config.json" else (1 << 20) - 16
    content = b'{"x":[' + b"[]," * ((n_bytes - 10) // 3) + b"[]]}"
    content += b" " * (-len(content) % 8)
    prefix = struct.pack("<Q", len(content)) if name == MODEL else b""
    (one / name).write_bytes(prefix + content)
    peak_file = one.parent / "peak"
    arguments = ["verify", "--output_dir", str(one), "--input_dir", str(place / "in")]
    outcome = run_process(arguments, peak_file)
    assert outcome.status == 1
    assert "Traceback" not in outcome.stderr
    (kilobytes,) = re.findall(r"(\d+) kB", peak_file.read_text())
    assert int(kilobytes) << 10 < 76 << 20


def test_the_first_problems_are_told_and_how_many_more(one, job):
    def nudge(raw: bytearray) -> None:
        raw[-1] ^= 1

    for name in SMALL_FILES[:3]:
        (one / name).unlink()
    change(one / RECORD, lambda c: [t.update(size=1) for t in c["tensors"].values()])
    found = told(one, job)
    assert len(found) == 21
    assert found[-1] == "... and 4 more"
    assert len(set(found)) == 21


def test_an_infinity_that_a_cast_made_is_no_right_output(tmp_path):
    """The conversion refuses it; another converter's output with it was said to be right."""
    import torch
    from safetensors.torch import load_file, save_file

    state = random_model(GQA, torch.bfloat16, 5)
    state["norm.weight"][3] = 65280.0
    save_checkpoint(tmp_path / "in", GQA, state)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT16))
    job = plan_conversion(tmp_path / "in", Options())
    assert told(without_record(tmp_path / "out"), job) == []
    state["norm.weight"][3] = -99840.0
    shutil.rmtree(tmp_path / "in")
    save_checkpoint(tmp_path / "in", GQA, state)
    tensors = load_file(tmp_path / "out" / MODEL)
    tensors[NORM][3] = -float("inf")
    save_file(tensors, tmp_path / "out" / MODEL, {"format": "pt"})
    (found,) = told(tmp_path / "out", plan_conversion(tmp_path / "in", Options()))
    for fact in (NORM, "row 3", "-inf", "fc00", "finite in the checkpoint"):
        assert fact in found
