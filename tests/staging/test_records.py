"""A journal is input: what it says wrongly it does not say, and its size is bounded."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from codellama_convert.plan.side import HUGGING_FACE
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.staging.records import (
    Journal,
    append_publishing,
    append_sealed,
    fingerprint_sha256,
    read_journal,
    write_journal,
)
from codellama_convert.staging.resume import Wanted
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.watch import Watch
from tests.outputs import ROOT, environment, journal_of

FINGERPRINT = {"version": "1", "options": {"dtype": "bfloat16"}, "consolidated.00.pth": [9, "ab"]}
SEALED = SealedFile(
    name="model.safetensors", n_bytes=90, crc32=(1 << 32) - 1, tensors={"a": 1, "b": 0},
    became_zero={}, nonfinite={"a": 2}, source=[{"data/0": [(0, 0, 4, 5), (0, 9, 10, 6)]}, {}],
)  # fmt: skip


def line_of(record: Any) -> bytes:
    text = json.dumps(record, separators=(",", ":"))
    return b'{"crc32":"%08x","record":%s}\n' % (zlib.crc32(text.encode()), text.encode())


HEAD = line_of({"fingerprint": fingerprint_sha256(FINGERPRINT), "identity": FINGERPRINT})
SECOND = json.loads(json.dumps(asdict(SEALED))) | {"name": "second"}


def read(path: Path) -> Journal | None:
    with HeldFolder(path.parent) as staging:
        return read_journal(staging)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with HeldFolder(tmp_path) as staging:
        assert read_journal(staging) is None
        write_journal(staging, Journal(FINGERPRINT))
        append_sealed(staging, SEALED)
        append_publishing(staging, {"config.json": FileSum(3, 4)})
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[0] == HEAD
    assert lines[1] == line_of({"file": asdict(SEALED)})
    found = read(path)
    assert found == Journal(FINGERPRINT, {SEALED.name: SEALED}, {"config.json": FileSum(3, 4)})


def with_value(*keys: str | int) -> Callable[[Any], Any]:
    """Put a value somewhere into the record of a sealed file."""

    def put(value: Any) -> Any:
        record = json.loads(json.dumps(SECOND))
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return {"file": record}

    return put


NO_NUMBERS = (None, True, 1.0, -1, "1", [], {}, 1 << 64)
WRONG: dict[str, Any] = {
    "publish [[1]]": {"publish": [[1]]},
    "publish a list of names": {"publish": ["config.json"]},
    "publish nothing said of a file": {"publish": {"config.json": {}}},
    "publish a number": {"publish": 1},
    "publish more said": {"publish": {"a": {"n_bytes": 1, "crc32": 1, "x": 1}}},
    "publish an empty name": {"publish": {"": {"n_bytes": 1, "crc32": 1}}},
    "no record": 1,
    "nothing": {},
    "null": None,
    "file null": {"file": None},
    "file []": {"file": []},
    "a key missing": {"file": {k: v for k, v in SECOND.items() if k != "source"}},
    "a key more": {"file": SECOND | {"x": 1}},
    **{f"name {value!r:.20}": with_value("name")(value)
       for value in (1, None, "", ["a"], "x" * 2000)},
    **{f"n_bytes {value!r}": with_value("n_bytes")(value) for value in NO_NUMBERS},
    **{f"crc32 {value!r}": with_value("crc32")(value) for value in (*NO_NUMBERS, 1 << 32)},
    **{f"a tensor's sum {value!r}": with_value("tensors", "a")(value)
       for value in (*NO_NUMBERS, "00000001", 1 << 32)},
    **{f"tensors {value!r}": with_value("tensors")(value) for value in (None, [], "a", 1)},
    **{f"a count {value!r}": with_value("nonfinite", "a")(value) for value in NO_NUMBERS},
    **{f"source {value!r}": with_value("source")(value) for value in (None, {}, [1], [[]], "ab")},
    **{f"pieces {value!r}": with_value("source", 0, "data/0")(value) for value in (
        None, {}, 1, [1], [[0, 0, 4]], [[0, 0, 4, 5, 6]], [["0", 0, 4, 5]], [[0, 0, 4, 1 << 32]],
        [[0, 4, 4, 5]], [[0, 4, 0, 5]], [[0, -4, 4, 5]], [[0, 0, 1 << 63, 5]], [[True, 0, 4, 5]],
        [[0, 0, 4, 5], [0, 3, 9, 5]], [[0, 4, 8, 5], [0, 0, 4, 5]], [[1, 0, 4, 5], [0, 4, 8, 5]],
        [[0, 0, 4, 5], [0, 0, 4, 5]],
    )},
}  # fmt: skip


@pytest.mark.parametrize("record", WRONG.values(), ids=WRONG.keys())
def test_a_record_that_is_wrong_is_no_record_and_ends_the_journal(
    tmp_path: Path, record: Any
) -> None:
    """15 of 40 such journals ended in tracebacks; each line's own sum is right."""
    path = tmp_path / "journal.jsonl"
    sealed = line_of({"file": asdict(SEALED)})
    path.write_bytes(HEAD + sealed + line_of(record) + line_of({"file": SECOND}))
    assert read(path) == Journal(FINGERPRINT, {SEALED.name: SEALED})


def test_the_neighbours_of_wrong_records_are_records(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    pieces = [[0, 0, 4, 5], [0, 4, 8, 5], [1, 0, 4, (1 << 32) - 1], [2, 3, (1 << 63) - 1, 0]]
    lines = [
        {"file": SECOND},
        with_value("source", 0, "data/0")(pieces),
        with_value("source")([]),
        with_value("n_bytes")((1 << 63) - 1),
        with_value("tensors", "a")((1 << 32) - 1),
        {"publish": {}},
    ]
    for line in lines:
        path.write_bytes(HEAD + line_of(line) + line_of({"file": asdict(SEALED)}))
        found = read(path)
        assert found is not None
        assert SEALED.name in found.sealed
    path.write_bytes(HEAD + line_of(lines[1]))
    found = read(path)
    assert found is not None
    assert found.sealed["second"].source[0]["data/0"] == [tuple(piece) for piece in pieces]


@pytest.mark.parametrize(
    "fingerprint", [1, None, [], "x", {"a": [[[[[]]]]]}, {"a": {"b": {"c": {"d": {"e": 1}}}}}]
)
def test_a_fingerprint_of_another_form_is_none(tmp_path: Path, fingerprint: Any) -> None:
    path = tmp_path / "journal.jsonl"
    text = json.dumps(fingerprint, sort_keys=True)
    path.write_bytes(
        line_of({"fingerprint": fingerprint_sha256(json.loads(text)), "identity": fingerprint})
    )
    assert read(path) is None


# Not tests.fuzzers.fuzz, which measures too: it takes a second to import torch.
MEASURED = """
import re, sys
from pathlib import Path
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.staging.records import read_journal
def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
before = status("VmRSS")
found = read_journal(HeldFolder(Path(sys.argv[1]).parent))
print(status("VmHWM") - before, None if found is None else len(found.sealed))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("kind", ["holes", "one long line", "records", "pieces", "lists"])
def test_a_journal_of_a_gigabyte_takes_bounded_memory(tmp_path: Path, kind: str) -> None:
    """It was read whole: a gigabyte of it took a gigabyte."""
    path = tmp_path / "journal.jsonl"
    with path.open("wb") as file:
        if kind == "one long line":
            file.write(HEAD.removesuffix(b"}\n"))
        else:
            file.write(HEAD)
        if kind == "records":
            for number in range(30_000):
                file.write(line_of({"file": SECOND | {"name": str(number)}}))
        elif kind == "pieces":
            many = [[0, at, at + 1, 0] for at in range(60_000)]
            for number in range(8):
                record = SECOND | {"name": str(number), "source": [{"data/0": many}]}
                file.write(line_of({"file": record}))
        elif kind == "lists":
            file.write(b'{"crc32":"00000000","record":[' + b"[]," * 600_000 + b"1]}\n")
        file.truncate(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], check=True, capture_output=True, text=True,
        cwd=ROOT, env=environment(), timeout=60,
    )  # fmt: skip
    growth, n_sealed = done.stdout.split()
    assert int(growth) < 96 << 20
    assert n_sealed != "None" or kind == "one long line"


def test_what_was_read_for_a_file_stands_in_the_journal_alone(tmp_path: Path) -> None:
    """A run has no more need of it, and that of 405B in 16 ranks takes 4 MB."""
    wanted = Wanted(
        FINGERPRINT, {}, overwrite=False, restart=False, side=HUGGING_FACE, watch=Watch()
    )
    with OutputFolder(tmp_path / "out", wanted) as folder:
        folder.note_sealed(SEALED)
        assert folder.sealed == {SEALED.name: replace(SEALED, source=[])}
        journal = journal_of(tmp_path / "out")
    assert journal is not None
    assert journal.sealed == {SEALED.name: SEALED}
