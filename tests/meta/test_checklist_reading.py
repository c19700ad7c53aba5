"""Ranks are read for their MD5 sums once, when all else is right, and never for nothing."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from codellama_convert import Options, plan_conversion
from codellama_convert.cli.commands import main
from codellama_convert.convert.run import run
from codellama_convert.errors import ConvertError, Interrupted, OutputError
from codellama_convert.meta import checklist
from codellama_convert.plan.run_options import RunOptions
from codellama_convert.storage.lock import FolderLock
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.meta.checklists import break_sum, convert
from tests.outputs import StopAfter


@pytest.fixture
def digested(monkeypatch):
    """The bytes of every file that was read for its sum."""
    read = []
    digest = checklist.file_digest

    def count(path, *arguments, **more):
        read.append(path.stat().st_size)
        return digest(path, *arguments, **more)

    monkeypatch.setattr(checklist, "file_digest", count)
    return read


def test_ranks_are_read_for_their_sums_only_when_all_else_is_right(download, digested):
    """70B takes minutes; a broken params.json is told at once."""
    read = digested
    options = Options(checksums="warn")
    plan_conversion(download, options).check_ranks()
    small = (download / "params.json").stat().st_size + (
        download / "tokenizer.model"
    ).stat().st_size
    ranks = sum(path.stat().st_size for path in download.glob("*.pth"))
    assert sum(read) == small + ranks
    read.clear()
    (download / "params.json").write_text("{}")
    with pytest.raises(ConvertError, match=r"params\.json"):
        plan_conversion(download, options)
    assert sum(read) == 2 + (download / "tokenizer.model").stat().st_size


@pytest.fixture
def counted(monkeypatch):
    """The bytes of ranks that were read for their sums."""
    read = []
    digest = checklist.file_digest

    def count(path, *arguments, **more):
        if path.suffix == ".pth":
            read.append(path.stat().st_size)
        return digest(path, *arguments, **more)

    monkeypatch.setattr(checklist, "file_digest", count)
    return read


@pytest.mark.parametrize("reason", ["occupied", "locked", "other staged work", "disk"])
def test_ranks_are_read_for_their_sums_only_when_the_output_can_be_written(
    download, tmp_path, counted, reason, monkeypatch
):
    """70B took minutes, and then its folder was not empty."""
    target = tmp_path / "out"
    target.mkdir()
    options = Options(checksums="warn", max_shard_bytes=60_000, workers=1)
    if reason == "occupied":
        (target / "notes.txt").write_bytes(b"mine")
    elif reason == "locked":
        lock = FolderLock(target)
        lock.take()
    elif reason == "other staged work":
        with pytest.raises(Interrupted):
            run(plan_conversion(download, replace(options, checksums="off")), target,
                watch=Watch(stop=StopAfter(30)))  # fmt: skip
        options = replace(options, dtype="float32")
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=1))
    job = plan_conversion(download, options)
    with pytest.raises(OutputError):
        run(job, target)
    assert counted == []
    monkeypatch.undo()


def test_ranks_are_read_for_their_sums_before_any_of_their_data(download, tmp_path, counted):
    written = []
    break_sum(download, "consolidated.01.pth")
    job = plan_conversion(download, Options(checksums="strict"))
    with pytest.raises(ConvertError, match=r"consolidated\.01\.pth does not match"):
        run(job, tmp_path / "out", watch=Watch(written.append))
    assert len(counted) == 2
    assert written == []
    assert not (tmp_path / "out").exists()


def test_a_signal_stops_the_reading_of_sums(download, tmp_path):
    stop = StopRequest()
    options = Options(checksums="warn", max_shard_bytes=60_000)
    job = plan_conversion(download, options)
    read = []

    def ask(n_bytes):
        read.append(n_bytes)
        stop.ask(signal.SIGTERM)

    def check(job, watch):
        return job.check_ranks(replace(watch, progress=ask).advance)

    with pytest.raises(Interrupted, match="run the same command again"):
        run(job, tmp_path / "out", RunOptions(check_source=check), watch=Watch(stop=stop))
    assert 1 <= len(read) <= 2  # of each rank
    run(plan_conversion(download, options), tmp_path / "out")


def test_a_sum_that_differs_is_told_once_and_recorded(download):
    break_sum(download, "consolidated.01.pth")
    result = convert(download, "--checksums", "warn", "--json")
    assert result.exit_code == 0
    told = [line for line in result.stderr.splitlines() if "consolidated.01.pth does not" in line]
    assert len(told) == 1
    printed = json.loads(result.stdout)["notes"]
    record = json.loads((download.with_name("out") / "conversion.json").read_text())["notes"]
    for notes in (printed, record):
        assert len([note for note in notes if "consolidated.01.pth does not match" in note]) == 1


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_other_commands_compare_the_ranks_too(download, counted, command):
    assert convert(download).exit_code == 0
    assert counted == []
    break_sum(download, "consolidated.01.pth")
    arguments = [command, "--input_dir", str(download), "--output_dir",
                 str(download.with_name("out")), "--checksums"]  # fmt: skip
    warned = CliRunner().invoke(main, [*arguments, "warn"])
    assert warned.exit_code == 0
    assert "consolidated.01.pth does not match" in warned.stderr
    assert len(counted) == 2
    assert CliRunner().invoke(main, [*arguments, "strict"]).exit_code == 1
