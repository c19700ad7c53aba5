"""A source that changes while each rank is made of it by itself: no rank of another model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codellama_convert import CheckpointError
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.formats.source_sums import Passes
from tests.convert.executors.ranks import (
    NAMES,
    assert_keeps,
    back,
    die_with_two,
    inodes,
)
from tests.convert.executors.workers import (
    Counting,
    Through,
)
from tests.outputs import STAGING, content, flip_bit
from tests.witness.checkpoints import (
    GQA,
    random_model,
    save_checkpoint,
)

WO = "model.layers.1.self_attn.o_proj.weight"  # each rank gets some of its columns
NORM = "model.norm.weight"  # and a copy of this
WQ = "model.layers.1.self_attn.q_proj.weight"  # and rows of this


@pytest.fixture
def source(converted: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder that may be changed."""
    return Path(shutil.copytree(converted / "out", tmp_path / "hf"))


def change_unseen(source: Path, name: str) -> Path:
    """Change both ends of a tensor's first row, and no size or time."""
    for path in source.glob("model-*.safetensors"):
        raw = path.read_bytes()
        n_bytes = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + n_bytes].decode()
        if f'"{name}"' in header:
            status = path.stat()
            entry = header.partition(f'"{name}"')[2]
            start = int(entry.partition('"data_offsets":[')[2].partition(",")[0])
            for column in (0, 63):
                flip_bit(path, 8 + n_bytes + start + 2 * column)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            return path
    raise AssertionError(name)


def changing(change: Callable[[], object], before: int) -> Callable[[int, FileRequest], FileReport]:
    """Change the source before a request is answered."""

    def work(number: int, request: FileRequest) -> FileReport:
        if number == before:
            change()
        return write_file(request)

    return work


@pytest.mark.parametrize("name", [WO, NORM])
@pytest.mark.parametrize("before", [2, 4])
def test_a_tensor_that_changes_between_two_ranks_is_refused(plain, source, tmp_path, name, before):
    """Safetensors keeps no sums, but those of two readings of one tensor are compared."""
    changed: list[Path] = []
    work = changing(lambda: changed.append(change_unseen(source, name)), before)
    with Through(work) as pool, pytest.raises(CheckpointError, match="changed while") as caught:
        back(source, tmp_path / "out", pool)
    assert name in str(caught.value)
    assert caught.value.path == changed[0]
    assert not (tmp_path / "out").exists()
    with Counting() as pool:  # the same command again, of the source as it is now
        back(source, tmp_path / "out", pool)
    back(source, tmp_path / "plain")
    assert content(tmp_path / "out") == content(tmp_path / "plain") != plain


@pytest.mark.parametrize("before", [1, None], ids=["before all", "never"])
def test_a_tensor_that_is_the_same_for_all_ranks_is_written(plain, source, tmp_path, before):
    work = changing(lambda: change_unseen(source, WO), before or 100)
    with Through(work) as pool:
        back(source, tmp_path / "out", pool)
    assert (content(tmp_path / "out") == plain) == (before is None)


def test_ranks_of_two_sources_would_be_seen(plain, source, tmp_path, monkeypatch):
    """The control: where the readings are not compared, ranks of two models are published."""
    over = Passes.over
    monkeypatch.setattr(Passes, "over", lambda self, name: over(self, name)[:1])
    with Through(changing(lambda: change_unseen(source, WO), 3)) as pool:
        back(source, tmp_path / "out", pool)
    back(source, tmp_path / "new")
    found, new = content(tmp_path / "out"), content(tmp_path / "new")
    assert {found[name] == plain[name] for name in NAMES} == {True, False}
    assert {found[name] == new[name] for name in NAMES} == {True, False}


def test_rows_that_change_between_two_ranks_are_those_that_were_read(plain, source, tmp_path):
    """Each row is read once: what the record says is what is written, as in a plain run."""
    with Through(changing(lambda: change_unseen(source, WQ), 2)) as pool:
        back(source, tmp_path / "out", pool)
    differ = {name for name in NAMES if content(tmp_path / "out")[name] != plain[name]}
    assert differ <= {NAMES[0]}


def test_ranks_with_sums_of_their_own_are_compared_with_these(tmp_path):
    """Those of Meta's files show a change at once, whichever request has read it."""
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA), 1)
    path = tmp_path / "in" / NAMES[0]
    whole, status = path.read_bytes(), path.stat()
    wo = random_model(GQA)["layers.1.attention.wo.weight"]
    at = whole.index(wo.view(torch.int16).numpy().tobytes())

    def change() -> None:
        flip_bit(path, at)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    with (
        Through(changing(change, 3)) as pool,
        pytest.raises(CheckpointError, match=r"layers\.1\.attention\.wo\.weight.*mismatch"),
    ):
        back(tmp_path / "in", tmp_path / "out", pool)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_replaced_between_two_ranks_is_refused(converted, source, tmp_path):
    def take_others() -> None:
        for path in (converted / "out").glob("model-*"):
            shutil.copyfile(path, source / "new")
            (source / "new").replace(source / path.name)

    with (
        Through(changing(take_others, 3)) as pool,
        pytest.raises(CheckpointError, match="the file changed while it was read"),
    ):
        back(source, tmp_path / "out", pool)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [WO, WQ])
def test_kept_ranks_of_a_source_that_changed_unseen_are_written_again(
    plain, source, tmp_path, name
):
    """Safetensors keeps no sums: what was read for a kept rank is read again."""
    die_with_two(source, tmp_path / "out")
    kept = sorted(inodes(tmp_path / "out" / STAGING))
    change_unseen(source, name)
    back(source, tmp_path / "new")
    n_kept = 0 if name == WO else 2 - (NAMES[0] in kept)
    assert_keeps(source, tmp_path / "out", n_kept, content(tmp_path / "new"))
    assert content(tmp_path / "out") != plain
