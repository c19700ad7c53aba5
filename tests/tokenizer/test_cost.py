"""What a hostile tokenizer.model or tokenizer.json may cost."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codellama_convert import Options, convert_checkpoint, plan_conversion
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.tokenizer.tokenizer_json import merges, tokenizer_json
from codellama_convert.verify.run import verify_output
from tests.refusals import refused
from tests.witness.vocabularies import CONTROL, add_piece, model_bytes, parsed, write_model

ROOT = Path(__file__).parents[2]
ALONE = Options(model_size="tokenizer_only")
MAX_RSS_BYTES = 64 << 20


def with_pieces(*texts: str, score: float | None = None, kind: int | None = None) -> bytes:
    model = parsed(model_bytes("plain"))
    there = {piece.piece for piece in model.pieces}
    for number, text in enumerate(text for text in texts if text not in there):
        add_piece(model, text, -1000.0 - number if score is None else score, kind)
    return model.SerializeToString()


def runs(letters: str, longest: int = 256) -> list[str]:
    """Every run of a letter: each can be cut anywhere, into two runs."""
    return [letter * n for letter in letters for n in range(2, longest + 1)]


def bytes_of_runs(longest: int = 256) -> int:
    """Spell what the merges of one letter's runs take: six spaces, quotes, a space, a comma."""
    return sum((n - 1) * (6 + 2 + n + 1 + 2) for n in range(2, longest + 1))


# Of one letter 5.9 MB. tokenizer.json may have 32 MiB.
FITS, TOO_MANY = "abcde", "abcdef"


def test_the_runs_of_these_letters_lie_on_both_sides_of_the_limit() -> None:
    assert len(FITS) * bytes_of_runs() < 32 << 20 < len(TOO_MANY) * bytes_of_runs()


# --- tokenizer.json -------------------------------------------------------------------------------


def test_a_vocabulary_of_substrings_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """4.4 MB of them made 3.9 million merges, 2.7 GB of memory and a tokenizer.json of 529 MB."""
    path = write_model(tmp_path / "in", with_pieces(*runs(TOO_MANY)))
    with refused(TokenizerError, str(path), "tokenizer.json", "33554432 bytes"):
        plan_conversion(tmp_path / "in", ALONE)
    with refused(TokenizerError, str(path), "tokenizer.json", "33554432 bytes"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out", options=ALONE)
    assert not (tmp_path / "out").exists()
    write_model(tmp_path / "in", with_pieces(*runs(FITS)))
    assert len(plan_conversion(tmp_path / "in", ALONE).small_files()["tokenizer.json"]) > 29_000_000


def grown(n_pieces: int) -> list[str]:
    """Join pieces at random, frequent ones the most, as training does; some are of CJK characters."""
    rng = random.Random(n_pieces)
    found = dict.fromkeys([*map(chr, range(33, 127)), *map(chr, range(0x4E00, 0x4E00 + 4000))])
    texts = list(found)
    while len(texts) < n_pieces:
        left, right = (texts[int(len(texts) * rng.random() ** 4)] for _ in range(2))
        if left + right not in found and len(left + right) <= 16:
            found[left + right] = None
            texts.append(left + right)
    return texts


def write_grown(folder: Path, n_pieces: int) -> Path:
    """Write a model as training makes one, of so many pieces."""
    model = parsed(model_bytes("plain"))
    there = {piece.piece for piece in model.pieces}
    texts = [text for text in grown(n_pieces) if text not in there]
    for number, text in enumerate(texts[: n_pieces - len(there)]):
        add_piece(model, text, -1000.0 - number)
    assert len(model.pieces) == n_pieces
    return write_model(folder, model.SerializeToString())


def test_a_vocabulary_of_a_size_in_use_fits(tmp_path: Path) -> None:
    """As many pieces as Chinese-LLaMA-2's, merged into Llama's."""
    path = write_grown(tmp_path, 55_296)
    content = tokenizer_json(read_sentencepiece_model(path))
    assert 30 * 55_296 < content.n_bytes < 3_000_000


def test_the_size_is_known_before_a_byte_is_written(tmp_path: Path) -> None:
    """The disk estimate is made of it, and so is the reserved space."""
    odd = ["\u2028", 'q"', "b\\", "\x01", "é中😀", "\x85x", "<u>", "two words"]
    models = [
        *(model_bytes(name) for name in ("plain", "infilling", "step_control", "stories")),
        with_pieces(*odd),
        with_pieces(*odd, kind=CONTROL),
        with_pieces(*runs("az", 40), score=-5.0),
    ]
    no_merges = parsed(model_bytes("plain"))
    del no_merges.pieces[259:]
    for raw in (*models, no_merges.SerializeToString()):
        content = tokenizer_json(read_sentencepiece_model(write_model(tmp_path, raw)))
        written = bytes(content)
        assert content.n_bytes == len(content) == len(written)
        assert json.loads(written)["version"] == "1.0"


def test_the_disk_estimate_follows_the_counted_size(tmp_path: Path) -> None:
    """It was five times the tokenizer.model; here tokenizer.json has fifty times its bytes."""
    for letters in ("", "a", "abc"):
        write_model(tmp_path / letters / "in", with_pieces(*runs(letters)))
        job = plan_conversion(tmp_path / letters / "in", ALONE)
        convert_checkpoint(tmp_path / letters / "in", tmp_path / letters / "out", options=ALONE)
        taken = sum(path.stat().st_size for path in (tmp_path / letters / "out").iterdir())
        assert taken <= sum(file_sizes(job, job.small_files()).values()) <= taken + (1 << 18)


def test_a_line_separator_inside_of_a_special_piece_is_no_line(tmp_path: Path) -> None:
    raw = with_pieces("\u2028x\x85", kind=CONTROL)
    content = bytes(tokenizer_json(read_sentencepiece_model(write_model(tmp_path, raw))))
    assert json.loads(content)["added_tokens"][-1]["content"] == "\u2028x\x85"


@pytest.mark.parametrize("seed", range(20))
def test_merges_stand_in_the_order_that_a_sort_of_all_would_give(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = {"".join(rng.choice("ab") for _ in range(rng.randint(2, 9))) for _ in range(60)}
    model = parsed(model_bytes("plain"))
    del model.pieces[259:]
    for text in ("a", "b", *rng.sample(sorted(texts), len(texts))):
        add_piece(model, text, rng.choice((0.0, -0.0, -1.0, -1.0, -2.5)))
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    splits = [
        (-piece.score, -cut, cut - len(piece.text), number, piece.text[:cut], piece.text[cut:])
        for number, piece in enumerate(tuple(read.pieces)[259:])
        for cut in range(1, len(piece.text))
        if {piece.text[:cut], piece.text[cut:]} <= read.ids.keys()
    ]
    assert len(splits) > 20
    assert list(merges(read)) == [(left, right) for *_, left, right in sorted(splits)]


_RUN_AND_MEASURE = """
import os, sys
from codellama_convert.__main__ import main
try:
    main()
finally:
    with open("/proc/self/status") as status, open(os.environ["PEAK_FILE"], "w") as peak:
        peak.writelines(line for line in status if line.startswith("VmHWM"))
"""


def measured(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the command line, and tell its peak memory."""
    peak = tmp_path / "peak"
    ended = subprocess.run(
        [sys.executable, "-c", _RUN_AND_MEASURE, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PEAK_FILE": str(peak)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    match = re.search(r"(\d+) kB", peak.read_text())
    assert match is not None
    return ended, int(match[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("score", [None, -5.0])
def test_the_largest_tokenizer_json_is_written_in_little_memory(tmp_path: Path, score) -> None:
    """30 MB, which is never whole in memory; not even where all merges are of one score."""
    write_model(tmp_path / "in", with_pieces(*runs(FITS), score=score))
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    ended, peak = measured(tmp_path, *folders, "--model_size", "tokenizer_only")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size > 29_000_000
    assert peak <= MAX_RSS_BYTES, f"{peak / 1e6:.1f} MB"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_a_large_vocabulary_is_converted_in_little_memory(tmp_path: Path) -> None:
    """Half as many pieces as Gemma 3's, which took 142 MB: each was a tuple of three objects."""
    path = write_grown(tmp_path / "in", 131_072)
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    ended, peak = measured(tmp_path, *folders, "--model_size", "tokenizer_only")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == path.read_bytes()
    assert 30 * 131_072 < (tmp_path / "out" / "tokenizer.json").stat().st_size < 9_000_000
    assert peak <= 80 << 20, f"{peak / 1e6:.1f} MB"


# --- verify ---------------------------------------------------------------------------------------


def test_verify_bounds_tokenizer_json_by_the_model_not_by_its_padding(tmp_path: Path) -> None:
    """Test samples of 8 MB in the model, and 126 MB of empty lists took 3.3 GB."""
    n_bytes = 7 << 20
    size = bytes([n_bytes & 0x7F | 0x80, n_bytes >> 7 & 0x7F | 0x80, n_bytes >> 14 & 0x7F | 0x80, n_bytes >> 21])  # fmt: skip
    padding = b"\x22" + size + bytes(n_bytes)
    write_model(tmp_path / "in", model_bytes("plain") + padding)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=ALONE)
    job = plan_conversion(tmp_path / "in", ALONE)
    assert verify_output(tmp_path / "out", job).problems == ()
    written = tmp_path / "out" / "tokenizer.json"
    for n_lists, fact in (
        (42_000_000, "byte 1 is 0x22, expected 0x0a"),
        (90_000, "too many lists"),
    ):
        written.write_bytes(b'{"model":[' + b"[]," * n_lists + b"1]}")
        told = "\n".join(verify_output(tmp_path / "out", job).problems)
        assert "tokenizer.json: " in told
        assert fact in told


def swap_lines(text: bytes, first: bytes) -> bytes:
    """Swap a line that begins so with the next one."""
    at = text.index(first)
    middle = text.index(b"\n", at) + 1
    end = text.index(b"\n", middle) + 1
    return text[:at] + text[middle:end] + text[at:middle] + text[end:]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda t: t, None),
        (lambda t: b"\xef\xbb\xbf" + t, "byte 0 is 0xef, expected 0x7b"),
        (lambda t: t.replace(b'"fuse_unk": true', b'"fuse_unk": null'), "0x6e, expected 0x74"),
        (lambda t: swap_lines(t, b'      "XX": '), "is 0x58, expected 0x22"),
        (lambda t: swap_lines(t, b'      "QQ QQ"'), "which belongs further up"),
        (lambda t: t.replace(b'      "QQ QQ",\n', b""), "65995 merges, expected 65996"),
        (lambda t: t.replace(b'"QQ QQ"', b'"QQQQ"'), "which does not make a piece"),
        (lambda t: t.replace(b'"QQ QQ"', b'"\\u0051Q QQ"'), "where a merge belongs"),
        (lambda t: t.replace(b'      "QQ QQ"', b'     "QQ QQ"'), "where a merge belongs"),
        (lambda t: t.replace(b'"QQ QQ"', b'["QQ", "QQ"]'), "where a merge belongs"),
        (lambda t: t.replace(b'"merges": [', b'"merges": [' + b"[]," * 2_000_000), "0x5b, expected 0x0a"),
        (lambda t: t.replace(b'"QQ QQ"', b'"' + b"x" * 20_000_000 + b'"'), "where a merge belongs"),
        (lambda t: t + b"\n", "does not end as it should"),
        (lambda t: t[:-1] + b" }", "does not end as it should"),
        (lambda t: t[:5_000_000] + t[-13:], "which does not make a piece"),
    ],
)  # fmt: skip
def test_a_tokenizer_json_too_long_to_parse_is_compared_line_by_line(
    tmp_path: Path, change, fact: str | None
) -> None:
    """Of 12 MB, parsed it took 110 MB; the largest has 32."""
    letters = "QX"
    write_model(tmp_path / "in", with_pieces(*runs(letters)))
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=ALONE)
    job = plan_conversion(tmp_path / "in", ALONE)
    written = tmp_path / "out" / "tokenizer.json"
    good = written.read_bytes()
    changed = change(good)
    assert (changed == good) is (fact is None)
    (tmp_path / "out" / "conversion.json").unlink()
    written.write_bytes(changed)
    told = [
        line
        for line in verify_output(tmp_path / "out", job).problems
        if "conversion.json" not in line
    ]
    if fact is None:
        assert told == []
    else:
        (line,) = told
        assert "tokenizer.json" in line
        assert fact in line
        assert len(line) < 300 + len(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_the_largest_tokenizer_json_is_verified_in_little_memory(tmp_path: Path) -> None:
    write_model(tmp_path / "in", with_pieces(*runs(FITS)))
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=ALONE)
    folders = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out")]
    ended, peak = measured(tmp_path, "verify", *folders, "--model_size", "tokenizer_only")
    assert ended.returncode == 0, ended.stderr
    assert peak <= MAX_RSS_BYTES, f"{peak / 1e6:.1f} MB"
