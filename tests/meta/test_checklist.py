"""Meta's MD5 lists: small files are always compared, ranks when asked, strictly when asked."""

from __future__ import annotations

import hashlib
import json
import os
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
from codellama_convert.storage.watch import StopRequest, Watch
from tests.outputs import StopAfter
from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture
def download(tmp_path):
    """A download with its list, as md5sum writes it (FACTS 1.7)."""
    folder = save_checkpoint(tmp_path / "CodeLlama-7b", GQA, n_ranks=2)
    names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    write_list(folder / "checklist.chk", folder, names)
    return folder


def write_list(path, folder, names):
    lines = [f"{hashlib.md5((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    path.write_text("".join(lines))


def convert(folder, *more):
    output = folder.with_name("out")
    return CliRunner().invoke(
        main, ["--input_dir", str(folder), "--output_dir", str(output), "--overwrite", *more]
    )


def break_sum(folder, name):
    path = folder / "checklist.chk"
    lines = path.read_text().splitlines()
    broken = ["0" * 32 + line[32:] if line.endswith(name) else line for line in lines]
    assert broken != lines
    path.write_text("\n".join(broken) + "\n")


@pytest.mark.parametrize("mode", ["off", "warn", "strict"])
def test_a_right_list_passes_in_every_mode(download, mode):
    result = convert(download, "--checksums", mode)
    assert result.exit_code == 0, result.output
    assert "MD5" not in result.stderr


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model"])
def test_small_files_are_always_compared_and_a_mismatch_is_a_note(download, name):
    break_sum(download, name)
    result = convert(download)
    assert result.exit_code == 0
    (note,) = [line for line in result.stderr.splitlines() if "MD5" in line]
    assert name in note
    assert "0" * 32 in note


def test_ranks_are_compared_when_asked(download):
    break_sum(download, "consolidated.01.pth")
    assert "MD5" not in convert(download).stderr
    warned = convert(download, "--checksums", "warn")
    assert warned.exit_code == 0
    assert "consolidated.01.pth does not match checklist.chk" in warned.stderr
    strict = convert(download, "--checksums", "strict", "--output_dir", str(download) + "-new")
    assert strict.exit_code == 1
    assert strict.stderr.splitlines()[-1].startswith("Error: ")
    assert "consolidated.01.pth" in strict.stderr
    assert not download.with_name("CodeLlama-7b-new").exists()


def test_the_tokenizers_own_list_beside_the_folder_is_read(tmp_path):
    """Llama 2: tokenizer.model and tokenizer_checklist.chk lie beside the model's folder."""
    folder = save_checkpoint(tmp_path / "llama-2-7b", GQA)
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    write_list(tmp_path / "tokenizer_checklist.chk", tmp_path, ["tokenizer.model"])
    write_list(folder / "checklist.chk", folder, ["consolidated.00.pth", "params.json"])
    assert convert(folder, "--checksums", "strict").exit_code == 0
    (tmp_path / "tokenizer_checklist.chk").write_text("0" * 32 + "  tokenizer.model\n")
    assert "tokenizer.model does not match" in convert(folder).stderr


def test_no_list_is_a_note_when_asked_and_an_error_when_strict(download):
    (download / "checklist.chk").unlink()
    assert "checklist" not in convert(download).stderr
    assert "no checklist.chk names" in convert(download, "--checksums", "warn").stderr
    assert convert(download, "--checksums", "strict").exit_code == 1


def test_a_list_that_is_a_web_page_is_a_note(download):
    (download / "checklist.chk").write_text("<html>Sign in</html>")
    result = convert(download)
    assert result.exit_code == 0
    assert "checklist.chk was not used" in result.stderr


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text[:32].upper() + text[32:],
        lambda text: text.replace("  ", " *"),
        lambda text: text.replace("  ", "  ./CodeLlama-7b/"),
        lambda text: text.replace("  ", "  CodeLlama-7b\\"),
        lambda text: text + text,
        lambda text: "\n" + text + "\n\n",
    ],
    ids=["crlf", "bom", "upper-case", "binary", "folders", "backslashes", "twice", "blank-lines"],
)
def test_a_list_as_other_tools_leave_it_is_read(download, rewrite):
    path = download / "checklist.chk"
    for name in ("consolidated.01.pth", None):
        if name is not None:
            break_sum(download, name)
            wrong = path.read_text()
        else:
            names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
            write_list(path, download, names)
            wrong = path.read_text()
        path.write_bytes(rewrite(wrong).encode())
        result = convert(download, "--checksums", "strict")
        assert result.exit_code == (1 if name else 0), result.stderr
        assert ("does not match checklist.chk" in result.stderr) is (name is not None)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"<html>Sign in</html>", "not a list of MD5 sums"),
        (b"0" * 31 + b"  params.json\n", "not a list of MD5 sums"),
        (b"\xff\xfe0\x000\x00", "not a list of MD5 sums"),
        (b"0" * 32 + b"  params.json\n" + b"1" * 32 + b"  params.json\n", "two sums of"),
        (b"\n" * ((1 << 16) + 1), "too large"),
        ("fifo", "regular file"),
        ("folder", "folder"),
        ("dangling", "No such file"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
def test_a_list_that_is_none_is_a_note_and_an_error_when_strict(download, content, fact):
    path = download / "checklist.chk"
    path.unlink()
    if content == "fifo":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content == "dangling":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(content)
    result = convert(download)
    assert result.exit_code == 0
    assert "checklist.chk was not used" in result.stderr
    assert fact in result.stderr
    strict = convert(download, "--checksums", "strict")
    assert strict.exit_code == 1
    assert fact in strict.stderr.splitlines()[-1]


@pytest.mark.parametrize("mode", ["off", "warn", "strict"])
def test_a_file_that_the_list_names_and_nobody_has_is_told(download, mode):
    path = download / "checklist.chk"
    path.write_text(path.read_text() + "0" * 32 + "  consolidated.02.pth\n")
    result = convert(download, "--checksums", mode)
    assert result.exit_code == (1 if mode == "strict" else 0)
    assert "checklist.chk names 'consolidated.02.pth', which is not there" in result.stderr


@pytest.mark.parametrize("mode", ["warn", "strict"])
def test_a_rank_that_no_list_names_is_told(download, mode):
    write_list(download / "checklist.chk", download, ["consolidated.00.pth", "params.json"])
    result = convert(download, "--checksums", mode)
    assert result.exit_code == (1 if mode == "strict" else 0)
    assert "names consolidated.01.pth" not in convert(download).stderr
    assert "no checklist.chk names tokenizer.model, consolidated.01.pth" in result.stderr


def test_the_tokenizer_alone_is_compared_too(download):
    only = ("--model_size", "tokenizer_only")
    assert "MD5" not in convert(download, *only).stderr
    break_sum(download, "tokenizer.model")
    assert "tokenizer.model does not match" in convert(download, *only).stderr
    assert convert(download, *only, "--checksums", "strict").exit_code == 1


@pytest.mark.skipif(os.name == "nt", reason="holes as POSIX has them")
def test_a_file_of_any_size_that_is_listed_is_not_read_through(download):
    """8.8 TB, all of it a hole: reading it for its MD5 would take a day."""
    (download / "params.json").unlink()
    with (download / "params.json").open("wb") as file:
        file.truncate(1 << 43)
    result = convert(download)
    assert result.exit_code == 1
    assert "params.json: has 8796093022208 bytes" in result.stderr


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


def test_llama_3s_lists_are_read_in_both_spellings(download):
    """checklist.chk names ./consolidated.00.pth; the hub's dated list has the name first."""
    lines = (download / "checklist.chk").read_text().splitlines()
    dotted = "".join(line.replace("  ", "  ./") + "\n" for line in lines)
    (download / "checklist.chk").write_text(dotted)
    assert convert(download, "--checksums", "strict").exit_code == 0
    (download / "checklist.chk").unlink()
    dated = download / "Llama-3.1-8B-20240723.md5"
    dated.write_text("".join("{1} {0}\n".format(*line.split()) for line in lines))
    assert convert(download, "--checksums", "strict").exit_code == 0
    dated.write_text("consolidated.01.pth " + "0" * 32 + "\n")
    (note,) = plan_conversion(download, Options(checksums="warn")).check_ranks()
    assert "consolidated.01.pth does not match Llama-3.1-8B-20240723.md5" in note


def test_a_list_of_somebody_elses_files_is_passed_over(download):
    (download / "a.md5").write_text("other.zip  " + "0" * 32 + "\n")
    (download / "b.md5").write_text("not a list")
    assert convert(download, "--checksums", "strict").exit_code == 0
