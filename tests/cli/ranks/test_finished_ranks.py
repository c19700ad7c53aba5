"""The same `reverse` a second time, and its plan: what is done is not done again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from codellama_convert import ReverseOptions, RunOptions, convert_checkpoint, reverse_checkpoint
from codellama_convert.staging.records import Journal
from tests.cli.running import one_line, run
from tests.outputs import STAGING, content, flip_bit, put_journal
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

ASKED = ("--ranks", "4", "--checklist")
RANK = "consolidated.03.pth"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks, the Hugging Face folder made of it, and four ranks of either."""
    folder = tmp_path_factory.mktemp("finished")
    save_checkpoint(folder / "meta", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "meta", folder / "hf")
    for source in ("meta", "hf"):
        done = run("reverse", folder / source, folder / f"of-{source}", *ASKED)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(params=["meta", "hf"])
def place(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One of both sources as `in`, and what was made of it as `out`."""
    shutil.copytree(made / request.param, tmp_path / "in")
    # With new times: of a source without sums it counts that the output was written after it.
    shutil.copytree(made / f"of-{request.param}", tmp_path / "out", copy_function=shutil.copy)
    return tmp_path


def reverse(folder: Path, *more: str) -> Result:
    return run("reverse", folder / "in", folder / "out", *more)


def test_the_same_command_twice_does_nothing(place: Path) -> None:
    """It was refused: the output folder is not empty."""
    before = content(place / "out")
    again = reverse(place, *ASKED)
    assert again.exit_code == 0, again.output
    assert f"{place / 'out'}: already converted, nothing to do" in again.stdout
    assert "torchrun --nproc_per_node 4" in again.stdout
    assert content(place / "out") == before
    said = json.loads(reverse(place, *ASKED, "--json").stdout)
    assert said["already_converted"] is True
    assert said["kept_bytes"] == said["tensor_bytes"] > 0
    assert set(said["files"]) == set(before)
    shutil.rmtree(place / "out")
    assert json.loads(reverse(place, *ASKED, "--json").stdout)["already_converted"] is False


def test_the_same_call_twice_does_nothing(place: Path) -> None:
    """The library refused what the command line called done, in both directions."""
    options = ReverseOptions(n_ranks=4, checklist=True)
    report = reverse_checkpoint(place / "in", place / "out", options=options)
    assert report.already_converted
    assert report.kept_bytes == report.tensor_bytes
    over = RunOptions(overwrite=True)
    again = reverse_checkpoint(place / "in", place / "out", options=options, run_options=over)
    assert not again.already_converted
    assert again.files == report.files


@pytest.mark.parametrize("more", [("--workers", "1"), ("--io", "buffered"), ("--max_ram", "8MB")])
def test_options_that_change_no_byte_may_differ(place: Path, more: tuple[str, str]) -> None:
    assert "already converted" in reverse(place, *ASKED, *more).stdout


@pytest.mark.parametrize(
    "asked",
    [
        (), ("--checklist",), ("--ranks", "4"), ("--ranks", "2", "--checklist"),
        *(
            (*ASKED, *more)
            for more in (
                ("--dtype", "float16"), ("--torch_layout", "2.13"), ("--no_rope_freqs",),
                ("--skip_tokenizer",), ("--sha256",), ("--restart",),
            )
        ),
    ],
)  # fmt: skip
def test_another_command_is_refused(place: Path, asked: tuple[str, ...]) -> None:
    before = content(place / "out")
    assert "not empty" in one_line(reverse(place, *asked))
    assert content(place / "out") == before


def test_the_sums_are_known_again(place: Path) -> None:
    both = (place / "in", place / "sums", "--sha256")
    assert "wrote" in run("reverse", *both).stdout
    assert "already converted" in run("reverse", *both).stdout


def test_verifying_reads_the_weights_of_finished_ranks_too(place: Path) -> None:
    assert "already converted" in reverse(place, *ASKED, "--verify").stdout
    path = place / "out" / RANK
    flip_bit(path, path.stat().st_size // 2)
    assert "already converted" in reverse(place, *ASKED).stdout  # the weights are not read for it
    line = one_line(reverse(place, *ASKED, "--verify"))
    assert RANK in line
    assert "convert it again with --overwrite" in line


def other_weights(folder: Path) -> None:
    """As a training that continues leaves them: names, sizes and headers are the same."""
    made = max(path.stat().st_mtime_ns for path in (folder / "out").iterdir())
    for path in (folder / "in").iterdir():
        if path.suffix == ".safetensors":
            flip_bit(path, -1)
        elif path.suffix == ".pth":
            state = torch.load(path, weights_only=True)
            state["norm.weight"] = -state["norm.weight"]
            torch.save(state, path)
        while path.stat().st_ctime_ns <= made:  # a file system's clock may tick 100 times a second
            os.utime(path)


def other_weights_of_an_older_time(folder: Path) -> None:
    """As `cp -p` leaves them, from an earlier step of the training."""
    other_weights(folder)
    for path in (folder / "in").iterdir():
        os.utime(path, (0, 0))


def another_model_of_an_older_time(folder: Path) -> None:
    """As where the next step of a training goes to the same OUT: nothing changed since, by time."""
    _written_again(folder, random_model(GQA, torch.bfloat16, 4))


def one_matrix_is_another(folder: Path) -> None:
    """As where an adapter was merged into one projection only."""
    state = random_model(GQA, torch.bfloat16, 3)
    state["layers.1.attention.wv.weight"] *= 2
    _written_again(folder, state)


def nothing(folder: Path) -> None:
    """The control of both: the same model, written again as they are."""
    _written_again(folder, random_model(GQA, torch.bfloat16, 3))


def _written_again(folder: Path, state: dict[str, torch.Tensor]) -> None:
    is_metas = (folder / "in" / "params.json").exists()
    shutil.rmtree(folder / "in")
    ranks = folder / "in" if is_metas else folder / "ranks"
    save_checkpoint(ranks, GQA, state, n_ranks=2)
    if not is_metas:
        convert_checkpoint(ranks, folder / "in")
    for path in (folder / "out").iterdir():
        os.utime(path)


def test_the_same_source_at_another_place_is_the_same(place: Path) -> None:
    nothing(place)
    assert "already converted" in reverse(place, *ASKED).stdout


def a_rank_is_gone(folder: Path) -> None:
    (folder / "out" / RANK).unlink()


def a_rank_is_short(folder: Path) -> None:
    os.truncate(folder / "out" / RANK, (folder / "out" / RANK).stat().st_size - 1)


def a_beginning_is_damaged(folder: Path) -> None:
    flip_bit(folder / "out" / RANK, 0)


def a_directory_is_damaged(folder: Path) -> None:
    flip_bit(folder / "out" / RANK, -100)


def the_frequencies_are_damaged(folder: Path) -> None:
    """They are not moved from the source, so the conversion knows them."""
    path = folder / "out" / RANK
    found = torch.load(path, weights_only=True)["rope.freqs"]
    flip_bit(path, path.read_bytes().index(found.view(torch.uint8).numpy().tobytes()))


def params_were_edited(folder: Path) -> None:
    flip_bit(folder / "out" / "params.json", 3)


def the_list_was_edited(folder: Path) -> None:
    flip_bit(folder / "out" / "checklist.chk", 3)


def the_record_was_edited(folder: Path) -> None:
    flip_bit(folder / "out" / "conversion.json", 100)


def the_record_is_gone(folder: Path) -> None:
    (folder / "out" / "conversion.json").unlink()


def a_loader_takes_another(folder: Path) -> None:
    (folder / "out" / "optimizer.pth").touch()


def work_is_staged(folder: Path) -> None:
    (folder / "out" / STAGING).mkdir()
    (folder / "out" / STAGING / RANK).touch()
    (folder / "out" / STAGING / "journal.jsonl").touch()  # all else may be left over


@pytest.mark.parametrize(
    "change",
    [
        other_weights, other_weights_of_an_older_time, another_model_of_an_older_time,
        one_matrix_is_another, a_rank_is_gone, a_rank_is_short,
        a_beginning_is_damaged, a_directory_is_damaged, the_frequencies_are_damaged,
        params_were_edited, the_list_was_edited, the_record_was_edited, the_record_is_gone,
        a_loader_takes_another, work_is_staged,
    ],
)  # fmt: skip
def test_what_is_not_the_whole_result_of_this_command_is_not_finished(
    place: Path, change: Callable[[Path], None]
) -> None:
    change(place)
    refused = reverse(place, *ASKED)
    assert refused.exit_code == 1, refused.output
    assert "already converted" not in refused.output


HOSTILE: list[tuple[str, object]] = [
    ("files", []), ("files", "x"), ("source", []), ("tensors", None), ("tensors", {}),
    ("notes", [1]), ("notes", 1), ("options", {}), ("crc32", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), HOSTILE)
@pytest.mark.parametrize("more", [(), ("--sha256",)])
def test_a_strangers_record_is_no_proof(
    place: Path, key: str, value: object, more: tuple[str, ...]
) -> None:
    path = place / "out" / "conversion.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {key: value}, indent=2, sort_keys=True) + "\n")
    assert "not empty" in one_line(reverse(place, *ASKED, *more))


# --- the plan --------------------------------------------------------------------------------------


def test_the_plan_of_finished_ranks_says_so(place: Path) -> None:
    shown = reverse(place, *ASKED, "--plan")
    assert shown.exit_code == 0, shown.output
    assert "finished    already converted, nothing to do" in shown.stdout.splitlines()
    assert "disk        0 B needed, " in shown.stdout
    told = json.loads(reverse(place, *ASKED, "--plan", "--json").stdout)
    assert (told["output_finished"], told["output_refusal"], told["output_replaced"]) == (True, None, [])  # fmt: skip
    other = reverse(place, "--plan")
    assert other.exit_code == 1
    assert "refused     " in other.stdout


def test_the_plan_of_overwriting_says_what_would_go(place: Path) -> None:
    """It said that the folder would be refused, whatever was asked for."""
    before = content(place / "out")
    shown = reverse(place, "--plan", "--overwrite")
    assert shown.exit_code == 0, shown.output
    # A licence that somebody put there would stay.
    (place / "out" / "LICENSE").write_text("mine")
    told = json.loads(reverse(place, "--plan", "--overwrite", "--json").stdout)
    assert told["output_refusal"] is None
    assert told["output_replaced"] == sorted(before)
    assert "replaced    checklist.chk and 7 other files" in shown.stdout.splitlines()
    assert "refused" not in shown.stdout
    assert content(place / "out") == before | {"LICENSE": b"mine"}
    (place / "out" / "optimizer.pth").touch()
    refused = reverse(place, "--plan", "--overwrite")
    assert refused.exit_code == 1
    assert "holds 'optimizer.pth'" in refused.stdout


def test_the_plan_of_a_new_start_says_what_it_drops(place: Path) -> None:
    (place / "new" / STAGING).mkdir(parents=True)
    put_journal(place / "new", Journal({"version": "0", "options": {}}))
    both = (place / "in", place / "new", "--plan")
    assert "holds staged work of another " in run("reverse", *both).stdout
    for more in ("--restart", "--overwrite"):
        shown = run("reverse", *both, more)
        assert shown.exit_code == 0, shown.output
        assert "refused" not in shown.stdout
