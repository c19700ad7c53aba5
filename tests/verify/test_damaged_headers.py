"""Every change of a safetensors header, or of the index, is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from codellama_convert.errors import VerifyError
from tests.verify.damage import (
    INDEX,
    MODEL,
    NORM,
    change,
    entry,
    irregular,
    rewrite_header,
    told,
    top,
    without_record,
)


def test_a_header_of_1_mib_is_read_and_its_padding_is_seen(one, job):
    """Loaders pass over any padding; it was passed over here too."""
    without_record(one)
    whole = (one / MODEL).read_bytes()
    rewrite_header(one / MODEL, top(lambda _: None))
    assert (one / MODEL).read_bytes() == whole
    assert told(one, job) == []
    for n_bytes in (8, 16, 1 << 20):
        (one / MODEL).write_bytes(whole)
        rewrite_header(one / MODEL, lambda header, n=n_bytes: header + b" " * (n - len(header) % n))
        (found,) = told(one, job)
        assert "not laid out as the safetensors library would" in found


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (entry(data_offsets=[-128, 0]), "no valid shape and offsets"),
        (entry(data_offsets=[0, 128]), "begins at byte"),
        (entry(data_offsets=[43000.0, 43128.0]), "no valid shape and offsets"),
        (entry(data_offsets=[True, 129]), "no valid shape and offsets"),
        (entry(data_offsets=[128, 0]), "has -128 bytes"),
        (entry(data_offsets=[0]), "no valid shape and offsets"),
        (entry(data_offsets=[1 << 70, (1 << 70) + 128]), "no valid shape and offsets"),
        (entry(data_offsets=[1 << 60, (1 << 60) + 128]), "begins at byte"),
        (entry(data_offsets=None), "no valid shape and offsets"),
        (entry(shape=[1 << 62, 1 << 62]), "takes"),
        (entry(shape=[1] * 9), "no valid shape and offsets"),
        (entry(shape="64"), "no valid shape and offsets"),
        (entry(shape=[64.0]), "no valid shape and offsets"),
        (entry(shape=[True, 64]), "no valid shape and offsets"),
        (entry(shape=[[64]]), "no valid shape and offsets"),
        (entry(shape=[63]), "takes 126"),
        (entry(shape=[8, 8]), "shape (8, 8), expected (64,)"),
        (entry(dtype=["BF16"]), "dtype"),
        (entry(dtype="I16"), "dtype 'I16'"),
        (entry(dtype="F32"), "takes 256"),
        (entry(dtype="F16"), "several dtypes"),
        (entry(extra=1), "an unexpected form"),
        (top(lambda c: c.update({NORM: None})), "an unexpected form"),
        (top(lambda c: c.update({NORM: [1]})), "an unexpected form"),
        (top(lambda c: c.pop(NORM)), "accounts for"),
        (top(lambda c: c.pop("lm_head.weight")), "begins at byte"),
        (top(lambda c: c.update({"x\n\x1b": c.pop(NORM)})), "missing"),
        (top(lambda c: c.update({"x" * 100_000: c.pop(NORM)})), "missing"),
        (top(lambda c: c.update({"\ud800": c.pop(NORM)})), "missing"),
        (top(lambda c: c.pop("__metadata__")), "metadata is None"),
        (top(lambda c: c.update(__metadata__=None)), "metadata is None"),
        (top(lambda c: c.update(__metadata__={"format": "tf"})), "'tf'"),
        (top(lambda c: c.update(__metadata__={"format": 1})), "1"),
        (top(lambda c: c.update(__metadata__={"format": "pt", "x": "y" * 100_000})), "metadata"),
        (top(lambda c: c.update(__metadata__=c.pop("__metadata__"))), "not laid out"),
        (lambda h: b"        " + h, "not laid out"),
        (lambda h: h + b" ", "not laid out"),
        (lambda h: h.replace(b"{", b'{"__metadata__":{"format":"tf"},', 1), "twice"),
        (lambda h: h.replace(b"64]", b"NaN]", 1), "NaN"),
        (lambda _: b"[]      ", "not a JSON object"),
        (lambda _: b"\xff" * 8, "not JSON"),
        (lambda _: b"", "no safetensors header"),
        (lambda _: b"[" * 100_000, "nested too deeply"),
        (lambda h: h.ljust((1 << 20) + 8), "implausible header"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_told(one, job, edit, fact):
    rewrite_header(one / MODEL, edit)
    assert any(fact in line for line in told(one, job))
    assert told(one)


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 2000, -1])
def test_a_file_that_was_cut_is_told(one, job, n_bytes):
    path = one / MODEL
    path.write_bytes(path.read_bytes()[:n_bytes])
    (found,) = told(one, job)
    assert "header" in found
    assert told(one) == [found]


def test_one_flipped_bit_anywhere_in_a_header_is_found(one, job):
    """Every bit of the size, of the JSON and of its padding."""
    path = one / MODEL
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    assert whole[end - 1 : end] == b" ", "no padding: another model would have some"
    for bit in range(8 * end):
        damaged = bytearray(whole[:end])
        damaged[bit // 8] ^= 1 << bit % 8
        with path.open("r+b") as file:
            file.write(damaged)
        assert told_of_structure(one, job), bit
    path.write_bytes(whole)
    assert told_of_structure(one, job) == []


def told_of_structure(output: Path, job) -> list[str]:
    """Verify all but the weights, which a header says nothing of."""
    from codellama_convert.verify.folder_reader import read_output
    from codellama_convert.verify.report import Problems
    from codellama_convert.verify.weights import compare_shapes

    problems = Problems()
    try:
        stored = read_output(output, problems.add)
    except VerifyError as problem:
        return [str(problem)]
    compare_shapes(job.weights.checkpoint, stored, problems)
    dtypes = {one.dtype.name for one in stored.values()}
    return [*problems.lines(), *(dtypes - {"bfloat16"})]


F1 = "model-00001-of-00006.safetensors"


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["weight_map"].update(x=[1]), "plain file names"),
        (lambda c: c["weight_map"].update(x={}), "plain file names"),
        (lambda c: c["weight_map"].update(x=None), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"../many/{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x="/etc/passwd"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"..\\many\\{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"C:{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"{F1}:stream"), "plain file names"),
        (lambda c: c["weight_map"].update(x=""), "plain file names"),
        (lambda c: c["weight_map"].update(x="."), "plain file names"),
        (lambda c: c["weight_map"].update(x=".."), "plain file names"),
        (lambda c: c["weight_map"].update(x="a\0b"), "plain file names"),
        (lambda c: c["weight_map"].update(x="a" * 256), "plain file names"),
        (lambda c: c["weight_map"].update(x="a" * 255), "No such file"),
        (lambda c: c["weight_map"].update(x="a\nError; all is well\x1b[2J"), "No such file"),
        (lambda c: c["weight_map"].update(x="\ud800"), "file name"),
        (lambda c: c["weight_map"].update(x="config.json"), "header"),
        (lambda c: c.update(weight_map=[]), "plain file names"),
        (lambda c: c.pop("weight_map"), "plain file names"),
        (lambda c: c.update(weight_map={}), "is missing"),
        (lambda c: c["metadata"].update(total_size=266880.0), "266880.0"),
        (lambda c: c["metadata"].update(total_size=266879), "266879"),
        (lambda c: c["metadata"].clear(), "total_size is None"),
        (lambda c: c.update(metadata=[]), "total_size is None"),
    ],
)
def test_an_index_that_lies_is_told(many, job, edit, fact):
    change(many / INDEX, edit)
    assert any(fact in line for line in told(many, job))
    assert told(many)


def test_an_index_with_a_tensor_twice_is_told(many, job):
    text = (many / INDEX).read_text()
    twice = text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{F1}",')
    (many / INDEX).write_text(twice)
    (found,) = told(many, job)
    assert "twice" in found


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "dangling"])
def test_a_shard_or_an_index_that_is_no_file_is_told(many, job, kind):
    irregular(many / F1, kind)
    (found,) = told(many, job)
    assert F1 in found
    shutil.copy(many / "model-00002-of-00006.safetensors", many / "spare")
    irregular(many / INDEX, kind)
    (found,) = told(many, job)
    assert INDEX in found or kind == "missing"


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_shards_that_are_links_are_followed(many, job):
    for path in list(many.glob("*.safetensors")):
        path.rename(many.parent / path.name)
        path.symlink_to(many.parent / path.name)
    assert told(many, job) == told(many) == []
