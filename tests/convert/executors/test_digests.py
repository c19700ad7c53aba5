"""What reads whole files is work for an executor too: SHA-256, Meta's list, a list that is written."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from codellama_convert import (
    CheckpointError,
    OutputError,
    ReverseOptions,
    RunOptions,
    WorkerError,
    convert_checkpoint,
    plan_conversion,
    reverse_checkpoint,
)
from codellama_convert.convert.jobs import is_staged_whole, write_file
from codellama_convert.convert.run import run
from codellama_convert.storage.digests import file_digests, take_digest
from codellama_convert.storage.watch import Watch
from tests.convert.executors.workers import OPTIONS, Counting
from tests.outputs import STAGING, content, flip_bit, stop_after_files


def names_of(pool: Counting, work: Any) -> list[str]:
    return sorted(request.path.rpartition("/")[2] for fn, request in pool.asked if fn is work)


def test_sha256_sums_are_taken_by_workers(converted, tmp_path):
    how = RunOptions(sha256=True)
    convert_checkpoint(converted / "in", tmp_path / "plain", options=OPTIONS, run_options=how)
    with Counting() as pool:
        convert_checkpoint(
            converted / "in", tmp_path / "out", options=OPTIONS, run_options=how, executor=pool
        )
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert content(tmp_path / "out") != content(converted / "out")
    hashed = set(content(tmp_path / "out")) - {"conversion.json"}
    assert names_of(pool, take_digest) == sorted(hashed)


def test_metas_list_is_compared_by_workers(converted, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(converted / "in", source)
    ranks = [*sorted(source.glob("*.pth")), source / "params.json"]
    md5s = [hashlib.md5(path.read_bytes()).hexdigest() for path in ranks]
    listed = [f"{md5}  {path.name}\n" for md5, path in zip(md5s, ranks, strict=True)]
    (source / "checklist.chk").write_text("".join(listed))
    options = replace(OPTIONS, checksums="warn", skip_tokenizer=True)
    with Counting() as pool:
        right = convert_checkpoint(source, tmp_path / "right", options=options, executor=pool)
        assert names_of(pool, take_digest) == [path.name for path in ranks[:2]]
        assert not [note for note in right.notes if "consolidated" in note]
        (source / "checklist.chk").write_text(
            "".join([listed[0], "0" * 32, *listed[1:]]).replace("0" * 32 + md5s[1], "0" * 32)
        )
        wrong = convert_checkpoint(source, tmp_path / "wrong", options=options, executor=pool)
        (note,) = [note for note in wrong.notes if "consolidated" in note]
        assert f"MD5 {md5s[1]}, expected {'0' * 32}" in note
        with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth does not match"):
            convert_checkpoint(
                source, tmp_path / "out", options=replace(options, checksums="strict"),
                executor=pool,
            )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_list_of_ranks_is_made_by_workers(converted, tmp_path):
    options = ReverseOptions(n_ranks=2, checklist=True)
    reverse_checkpoint(converted / "out", tmp_path / "plain", options=options)
    with Counting() as pool:
        reverse_checkpoint(converted / "out", tmp_path / "out", options=options, executor=pool)
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert len([fn for fn, _ in pool.asked if fn is write_file]) == 2, "each rank is one request"
    assert "consolidated.01.pth" in names_of(pool, take_digest)


def test_a_file_that_cannot_be_read_is_named_by_whose_it_is(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    read: list[int] = []
    how = {"error": OutputError, "watch": Watch(read.append)}
    with ThreadPoolExecutor(1) as pool:
        found = file_digests(tmp_path, ["one"], "md5", executor=pool, **how)
        assert found == {"one": "c4ca4238a0b923820dcc509a6f75849b"}
        assert read == [1]
        with pytest.raises(OutputError, match="two"):
            file_digests(tmp_path, ["one", "two"], "md5", executor=pool, **how)
    with pytest.raises(WorkerError, match="takes no work: cannot schedule new fut"):
        file_digests(tmp_path, ["one"], "md5", executor=pool, **how)


def test_what_is_kept_is_read_by_workers(converted, tmp_path):
    """Of three whole files one was damaged: that one is written again, and the others stay."""
    job = plan_conversion(converted / "in", OPTIONS)
    stop_after_files(job, tmp_path / "out", 3)
    staged = sorted((tmp_path / "out" / STAGING).glob("model-*"))
    assert len(staged) == 3
    flip_bit(staged[1], -1)
    inodes = {path.name: path.stat().st_ino for path in staged}
    with Counting() as pool:
        run(job, tmp_path / "out", executor=pool)
    looked = [request.name for fn, request in pool.asked if fn is is_staged_whole]
    assert looked == [path.name for path in staged]
    written = {request.names[0] for fn, request in pool.asked if fn is write_file}
    assert len(written) == 4
    assert {name for name in inodes if name in written} == {staged[1].name}
    assert content(tmp_path / "out") == content(converted / "out")
    same = {n for n, inode in inodes.items() if (tmp_path / "out" / n).stat().st_ino == inode}
    assert same >= {staged[0].name, staged[2].name}


def test_a_kept_file_that_a_worker_cannot_read_is_read_here(converted, tmp_path):
    """It counted as damaged, and a good file was deleted; a damaged neighbour still goes."""
    job = plan_conversion(converted / "in", OPTIONS)
    stop_after_files(job, tmp_path / "out", 3)
    staging = tmp_path / "out" / STAGING
    good, bad, _ = sorted(staging.glob("model-*"))
    flip_bit(bad, -1)
    inodes = {path.name: path.stat().st_ino for path in (good, bad)}

    def cannot_read(request: Any) -> Any:
        path = staging / request.name
        path.rename(path.with_suffix(".away"))
        try:
            return is_staged_whole(request)
        finally:
            path.with_suffix(".away").rename(path)

    class Poor(Counting):
        def submit(self, fn: Any, /, *args: Any, **named: Any) -> Any:
            return super().submit(cannot_read if fn is is_staged_whole else fn, *args, **named)

    with Poor() as pool:
        run(job, tmp_path / "out", executor=pool)
    written = {request.names[0] for fn, request in pool.asked if fn is write_file}
    assert good.name not in written
    assert bad.name in written
    assert (tmp_path / "out" / good.name).stat().st_ino == inodes[good.name]
    assert content(tmp_path / "out") == content(converted / "out")


def test_a_worker_that_reads_what_is_kept_stops_with_its_run(converted, tmp_path):
    """After Ctrl-C it read on, to the end of each file that it was given."""
    job = plan_conversion(converted / "in", OPTIONS)
    stop_after_files(job, tmp_path / "out", 3)
    seen: list[bool | None] = []

    class Late(Counting):
        def submit(self, fn: Any, /, request: Any, **named: Any) -> Any:
            if fn is is_staged_whole:
                seen.append(is_staged_whole(request))
                with pytest.raises(WorkerError, match="is over"):
                    is_staged_whole(replace(request, token="0" * 32))
            return super().submit(fn, request, **named)

    with Late() as pool:
        run(job, tmp_path / "out", executor=pool)
    assert seen == [True, True, True]
