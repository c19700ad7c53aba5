"""Meta's MD5 lists: small files are always compared, ranks when asked, strictly when asked."""

from __future__ import annotations

import hashlib

import pytest
from click.testing import CliRunner

from codellama_convert.cli import main
from tests.checkpoints import GQA, save_checkpoint


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
