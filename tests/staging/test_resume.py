"""A resumed run vouches for every byte: those of kept files, of files written again, and the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint, run
from codellama_convert.errors import CheckpointError, OutputError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.staging.records import Journal
from tests.faults.resumes import replace_ranks
from tests.outputs import (
    STAGING,
    content,
    flip_bit,
    journal_of,
    loads,
    put_journal,
    stop_after_files,
)
from tests.witness.checkpoints import (
    GQA,
    STORAGES,
    Storage,
    random_model,
    save_checkpoint,
    sums_computed,
)

OPTIONS = Options(max_shard_bytes=60_000, workers=1, tile_bytes=8192)
N_FILES, N_WHOLE = 6, 3
SHARDS = [f"model-{number:05d}-of-00006.safetensors" for number in range(1, N_FILES + 1)]
FIRST, SECOND, THIRD = SHARDS[:N_WHOLE]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Storage], Path]:
    """Give a folder with a checkpoint, what becomes of it, and a run stopped after three files."""
    made: dict[tuple[Storage, bool], Path] = {}

    def make(target: Path, storage: Storage, *, with_crc: bool = True) -> Path:
        if (storage, with_crc) not in made:
            folder = made[storage, with_crc] = tmp_path_factory.mktemp(storage)
            save(folder / "in", 3, storage, with_crc=with_crc)
            convert_checkpoint(folder / "in", folder / "whole", options=OPTIONS)
            assert sorted(path.name for path in (folder / "whole").glob("model-*")) == SHARDS
        source = made[storage, with_crc]
        shutil.copytree(source / "in", target / "in")
        shutil.copytree(source / "whole", target / "whole")
        stop_after_files(plan_conversion(target / "in", OPTIONS), target / "out", N_WHOLE)
        staged = {path.name for path in (target / "out" / STAGING).glob("model-*")}
        assert staged == {FIRST, SECOND, THIRD}
        return target

    return make


def save(folder: Path, seed: int, storage: Storage, *, with_crc: bool) -> None:
    state = random_model(GQA, torch.bfloat16, seed)
    with sums_computed(by_torch=with_crc):
        save_checkpoint(folder, GQA, state, n_ranks=2, storage=storage)


def inodes(folder: Path, names: set[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in names}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("damaged", [{FIRST}, {SECOND}, {THIRD}, {FIRST, THIRD}, set()])
def test_a_damaged_file_is_written_again_and_the_others_are_kept(
    stopped: Callable[..., Path], tmp_path: Path, storage: Storage, damaged: set[str]
) -> None:
    """With all tensors in one storage a damaged middle file ended this and every later run.

    ValueError: bytes 0 to 40960 overlap or leave ...: a file's record held what was read for all
    files before it, too.
    """
    folder = stopped(tmp_path / "run", storage)
    staging = folder / "out" / STAGING
    for name in damaged:
        flip_bit(staging / name, -5)
    kept = {FIRST, SECOND, THIRD} - damaged
    before = inodes(staging, kept)
    run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert content(folder / "out") == content(folder / "whole")
    assert inodes(folder / "out", kept) == before


@pytest.mark.parametrize("storage", ["flat", "shared-offset"])
@pytest.mark.parametrize("damaged", [FIRST, SECOND, THIRD])
def test_what_a_file_is_written_again_from_is_checked_again(
    stopped: Callable[..., Path], tmp_path: Path, storage: Storage, damaged: str
) -> None:
    """The record of a later file vouched for bytes that had changed since: wrong ones went out.

    They were published with the sum of the right ones, while a run from the beginning is refused.
    """
    folder = stopped(tmp_path / "run", storage)
    flip_bit(folder / "out" / STAGING / damaged, -5)
    rank = folder / "in" / "consolidated.00.pth"
    tensor = read_rank(rank).tensors[A_TENSOR_OF[damaged]]
    flip_bit(rank, tensor.storage.offset + tensor.extent[0])
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth.*CRC-32 mismatch"):
        run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert not loads(folder / "out")


# Of each file one that rank 0 holds a part of; 60 kB are filled in the order of the state dict.
A_TENSOR_OF = {
    FIRST: "tok_embeddings.weight",
    SECOND: "layers.0.feed_forward.w3.weight",
    THIRD: "layers.1.attention.wq.weight",
}


def test_what_kept_files_are_made_of_may_be_lost_meanwhile(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """The control: their bytes are on the disk, and were right when they were read."""
    folder = stopped(tmp_path / "run", "flat")
    rank = folder / "in" / "consolidated.00.pth"
    storage = read_rank(rank).tensors[A_TENSOR_OF[SECOND]].storage
    for name in A_TENSOR_OF.values():
        flip_bit(rank, storage.offset + read_rank(rank).tensors[name].extent[0])
    run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert content(folder / "out") == content(folder / "whole")


def test_a_source_that_was_damaged_when_it_was_read_is_not_said_to_be_so_now(
    tmp_path: Path,
) -> None:
    """An intact file was called corrupt, to be downloaded again: 138 GB, say.

    A bit was wrong while an earlier run read what it staged, and right again (the disk's cable, a
    sync that had not ended) when the same command resumed.
    """
    save(tmp_path / "in", 3, "flat", with_crc=True)
    rank = tmp_path / "in" / "consolidated.00.pth"
    tensor = read_rank(rank).tensors[A_TENSOR_OF[FIRST]]
    at = tensor.storage.offset + tensor.extent[0]
    flip_bit(rank, at)
    stop_after_files(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out", 1)
    flip_bit(rank, at)
    with pytest.raises(CheckpointError, match="CRC-32 mismatch") as caught:
        run(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out")
    assert caught.value.hint is not None
    assert "or was when an earlier run read a part of it" in caught.value.hint
    assert "run the same command again" in caught.value.hint
    run(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out")
    convert_checkpoint(tmp_path / "in", tmp_path / "whole", options=OPTIONS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_source_that_is_damaged_in_a_first_run_is_said_to_be_corrupt(tmp_path: Path) -> None:
    """The neighbour: nothing but this run has read it."""
    save(tmp_path / "in", 3, "flat", with_crc=True)
    rank = tmp_path / "in" / "consolidated.00.pth"
    flip_bit(rank, read_rank(rank).tensors[A_TENSOR_OF[FIRST]].storage.offset)
    with pytest.raises(CheckpointError) as caught:
        run(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out")
    assert caught.value.hint == "the file is corrupt, download it again"


def everything_before(journal: Journal) -> SealedFile:
    """What a reader had read when the second file was whole: of the first, too."""
    one, two = (journal.sealed[name].source[0]["data/0"] for name in (FIRST, SECOND))
    return replace(journal.sealed[SECOND], source=[{"data/0": [*one, *two]}] * 2)


def another_sum(journal: Journal) -> SealedFile:
    sealed = journal.sealed[SECOND]
    name, crc = next(iter(sealed.tensors.items()))
    return replace(sealed, tensors=sealed.tensors | {name: crc ^ 1})


def with_an_unknown_storage(journal: Journal) -> SealedFile:
    """All that was read, and a storage that no rank has; it ended in a KeyError."""
    sealed = journal.sealed[SECOND]
    return replace(sealed, source=[{**sums, "data/7": []} for sums in sealed.source])


WRONG_RECORDS: dict[str, Callable[[Journal], SealedFile]] = {
    "of all that was read": everything_before,
    "of another file": lambda j: replace(j.sealed[SECOND], source=j.sealed[FIRST].source),
    "of nothing": lambda j: replace(j.sealed[SECOND], source=[{}, {}]),
    "of one rank": lambda j: replace(j.sealed[SECOND], source=j.sealed[SECOND].source[:1]),
    "of an unknown storage": lambda j: replace(j.sealed[SECOND], source=[{"data/7": []}] * 2),
    "with an unknown storage": with_an_unknown_storage,
    "another sum": another_sum,
    "no tensors": lambda j: replace(j.sealed[SECOND], tensors={}),
}


@pytest.mark.parametrize("wrong", WRONG_RECORDS.values(), ids=WRONG_RECORDS.keys())
def test_a_record_that_does_not_fit_its_file_is_no_record(
    stopped: Callable[..., Path], tmp_path: Path, wrong: Callable[[Journal], SealedFile]
) -> None:
    folder = stopped(tmp_path / "run", "flat")
    staging = folder / "out" / STAGING
    journal = journal_of(folder / "out")
    assert journal is not None
    journal.sealed[SECOND] = wrong(journal)
    put_journal(folder / "out", journal)
    before = inodes(staging, {FIRST, SECOND, THIRD})
    (tmp_path / "old").hardlink_to(staging / SECOND)  # or the new file could get its inode
    run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert content(folder / "out") == content(folder / "whole")
    again = inodes(folder / "out", {FIRST, SECOND, THIRD})
    assert {name for name in before if again[name] != before[name]} == {SECOND}


# --- ranks without CRC-32 -------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_without_sums_what_kept_files_are_made_of_is_compared_again(
    stopped: Callable[..., Path], tmp_path: Path, storage: Storage
) -> None:
    """Of another model's ranks, equal in size and time, half came behind half of the first's."""
    folder = stopped(tmp_path / "run", storage, with_crc=False)
    save(tmp_path / "other", 4, storage, with_crc=False)
    convert_checkpoint(tmp_path / "other", tmp_path / "other-whole", options=OPTIONS)
    replace_ranks(folder / "in", tmp_path / "other")
    run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert content(folder / "out") == content(tmp_path / "other-whole")


@pytest.mark.parametrize("storage", STORAGES)
def test_without_sums_only_files_whose_source_changed_are_written_again(
    stopped: Callable[..., Path], tmp_path: Path, storage: Storage
) -> None:
    folder = stopped(tmp_path / "run", storage, with_crc=False)
    shutil.copytree(folder / "in", tmp_path / "other")
    rank = tmp_path / "other" / "consolidated.00.pth"
    tensor = read_rank(rank).tensors[A_TENSOR_OF[SECOND]]
    flip_bit(rank, tensor.storage.offset + tensor.extent[0])
    convert_checkpoint(tmp_path / "other", tmp_path / "other-whole", options=OPTIONS)
    replace_ranks(folder / "in", tmp_path / "other")
    before = inodes(folder / "out" / STAGING, {FIRST, THIRD})
    run(plan_conversion(folder / "in", OPTIONS), folder / "out")
    assert inodes(folder / "out", {FIRST, THIRD}) == before
    assert content(folder / "out") == content(tmp_path / "other-whole")


def test_without_sums_another_order_of_the_tensors_is_another_conversion(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """The same bytes under swapped names: the pickle has no CRC-32 either."""
    folder = stopped(tmp_path / "run", "own", with_crc=False)
    shutil.copytree(folder / "in", tmp_path / "other")
    for rank in (tmp_path / "other").glob("*.pth"):
        before = rank.read_bytes()
        after = before.replace(b".w1.", b".wX.").replace(b".w3.", b".w1.").replace(b".wX.", b".w3.")
        assert after != before
        rank.write_bytes(after)
    replace_ranks(folder / "in", tmp_path / "other")
    with pytest.raises(OutputError, match=r"another checkpoint.*consolidated\.00\.pth"):
        run(plan_conversion(folder / "in", OPTIONS), folder / "out")
