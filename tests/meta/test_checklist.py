"""Meta's MD5 lists: small files are always compared, ranks when asked, strictly when asked."""

from __future__ import annotations

import os

import pytest

from codellama_convert import Options, plan_conversion
from tests.meta.checklists import break_sum, convert, write_list
from tests.witness.checkpoints import GQA, save_checkpoint


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
