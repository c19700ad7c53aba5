"""A job array without an engine: parts in any order, twice, killed; then the same command finishes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.running import run
from tests.cli.terminal.test_signals import hooked
from tests.faults.dying import module_that_dies
from tests.outputs import (
    LOCK,
    ROOT,
    SHARDS,
    STAGING,
    command,
    content,
    convert_whole,
    environment,
    finish,
    flip_bit,
    loads,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what a plain conversion makes of it."""
    return convert_whole(tmp_path_factory.mktemp("plain"))


def convert(plain: Path, target: Path, *more: str) -> Result:
    return run(
        "--input_dir", plain / "in", "--output_dir", target, "--max_shard_size", SHARDS, *more
    )


def part(plain: Path, target: Path, which: str) -> dict[str, list[str]]:
    """Run a part; return what it wrote and kept."""
    done = convert(plain, target, "--part", which, "--json")
    assert done.exit_code == 0, done.output
    assert not loads(target)
    said = json.loads(done.stdout)
    assert said["part"] == which
    return said


def finished(plain: Path, target: Path) -> bool:
    """Finish: what is there is what a plain run makes, and nothing else. Return whether all was kept."""
    done = convert(plain, target, "--json")
    assert done.exit_code == 0, done.output
    assert content(target) == content(plain / "out")
    assert {path.name for path in target.iterdir()} == set(content(plain / "out"))
    said = json.loads(done.stdout)
    return bool(said["kept_bytes"] == said["tensor_bytes"])


def files_of(plain: Path) -> set[str]:
    return {path.name for path in (plain / "out").glob("model-*.safetensors")}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_the_parts_in_any_order_and_then_the_end(
    plain: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    written = [part(plain, tmp_path / "out", f"{number}/3")["written"] for number in order]
    assert all(written)
    assert sorted(name for names in written for name in names) == sorted(files_of(plain))
    sizes = [sum((plain / "out" / n).stat().st_size for n in names) for names in written]
    assert max(sizes) - min(sizes) <= 60_000 + 4096, "one file more at most"
    assert finished(plain, tmp_path / "out")
    late = convert(plain, tmp_path / "out", "--part", "2/3")
    assert late.exit_code == 0
    assert "already converted" in late.stdout
    assert content(tmp_path / "out") == content(plain / "out")


def test_a_part_twice_and_another_number_of_parts_write_nothing_again(
    plain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    first = part(plain, target, "1/2")
    again = part(plain, target, "1/2")
    assert (again["written"], sorted(again["kept"])) == ([], sorted(first["written"]))
    others = part(plain, target, "1/1")
    assert sorted(others["kept"]) == sorted(first["written"])
    assert sorted(others["written"]) == sorted(files_of(plain) - set(first["written"]))
    finished(plain, target)


def test_parts_that_are_missing_are_written_by_the_end(plain: Path, tmp_path: Path) -> None:
    part(plain, tmp_path / "out", "2/3")
    assert not finished(plain, tmp_path / "out")


def test_an_end_that_is_killed_anywhere_and_a_part_after_it(plain: Path, tmp_path: Path) -> None:
    """The journals of the parts were removed before the common one was saved; and a part that came
    while the end was publishing wrote a file again that was moved, after which no end was possible.
    """
    for which in ("1/2", "2/2"):
        part(plain, tmp_path / "parts", which)
    for step in count(1):
        target = tmp_path / f"out{step}"
        shutil.copytree(tmp_path / "parts", target)
        end = finish([*module_that_dies(step), *command(plain / "in", target)[3:]])
        if end.returncode == 0:
            break
        assert end.returncode == -signal.SIGKILL, end.stderr
        late = convert(plain, target, "--part", "1/2", "--json")
        assert late.exit_code == 0, (step, late.output)
        assert json.loads(late.stdout)["written"] == [], step
        assert finished(plain, target), step
    assert step > 30, "it dies while it publishes, too"


def test_parts_at_once_and_one_of_them_twice(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    running = [
        subprocess.Popen(
            command(plain / "in", target, "--part", which),
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE,
        )
        for which in ("1/2", "2/2", "2/2")
    ]  # fmt: skip
    for one in running:
        _, printed = one.communicate(timeout=120)
        assert one.returncode == 0, printed
    finished(plain, target)


# Each step of a part, by its number from the start; the last one is after its first file.
@pytest.mark.parametrize("step", [1, 3, 6, 8, 9, 10, 12])
def test_a_part_that_is_killed_does_no_harm(plain: Path, tmp_path: Path, step: int) -> None:
    target = tmp_path / "out"
    of_another = part(plain, target, "1/2")["written"] if step % 2 else []
    arguments = command(plain / "in", target, "--part", "2/2")[3:]
    killed = finish([*module_that_dies(step), *arguments])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not loads(target)
    assert {*of_another} <= {path.name for path in (target / STAGING).glob("model-*")}
    if step > 8:
        part(plain, target, "2/2")
    finished(plain, target)


def test_a_signal_stops_a_part_and_the_same_command_resumes(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    arguments = command(plain / "in", target, "--part", "1/2")
    stopped = hooked("staging.task_folder:TaskFolder:seal", signal.SIGTERM, arguments)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "Interrupted; run the same command again to resume"
    assert not list((target / STAGING).glob("*.part"))
    assert part(plain, target, "1/2")["kept"]
    finished(plain, target)


def test_a_file_that_was_damaged_since_is_written_again(plain: Path, tmp_path: Path) -> None:
    """A part looks at sizes alone; who finishes reads every byte."""
    first, *_ = part(plain, tmp_path / "out", "1/2")["written"]
    flip_bit(tmp_path / "out" / STAGING / first, -1)
    finished(plain, tmp_path / "out")


def test_other_options_and_a_changed_source_are_refused(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain / "in", tmp_path / "in")
    both = (tmp_path / "in", tmp_path / "out")
    assert run(*both, "--part", "1/2").exit_code == 0
    for more in ("--part", "2/2"), ():
        other = run(*both, *more, "--dtype", "float16")
        assert other.exit_code == 1
        assert "holds staged work of another conversion" in other.stderr
    params = tmp_path / "in" / "params.json"
    params.write_bytes(params.read_bytes() + b"\n")
    changed = run(*both, "--part", "2/2")
    assert changed.exit_code == 1
    assert "params.json is not the same file" in changed.stderr
    assert not loads(tmp_path / "out")


def test_nobody_finishes_while_a_part_is_at_work(plain: Path, tmp_path: Path) -> None:
    """It would drop what the part is writing."""
    import fcntl

    target = tmp_path / "out"
    part(plain, target, "1/2")
    with (target / LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        early = convert(plain, target)
        assert early.exit_code == 1
        assert "another conversion is running in this folder" in early.stderr
        part(plain, target, "2/2")  # as another part is no reason to wait
    finished(plain, target)


@pytest.mark.parametrize("option", ["--verify", "--sha256", "--model_card"])
def test_what_belongs_to_the_end_is_left_to_it(plain: Path, tmp_path: Path, option: str) -> None:
    """Parts refused it, though the Slurm script gives all options to both."""
    target = tmp_path / "out"
    for which in ("1/2", "2/2"):
        assert convert(plain, target, "--part", which, option).exit_code == 0
    assert convert(plain, target, option).exit_code == 0
    ended = content(target)
    late = convert(plain, target, "--part", "1/2")
    assert late.exit_code == 0, late.stderr
    assert "already converted" in late.stdout
    assert content(target) == ended, "no lock is left"


def test_restart_is_refused_in_a_part_with_the_reason(plain: Path, tmp_path: Path) -> None:
    refused = convert(plain, tmp_path / "out", "--part", "1/2", "--restart")
    assert refused.exit_code == 2
    assert "it would discard what other parts have written" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_leaves_no_lock_in_a_folder_that_it_refuses(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain / "out", tmp_path / "out")
    flip_bit(tmp_path / "out" / "config.json", 1)
    refused = convert(plain, tmp_path / "out", "--part", "1/2")
    assert refused.exit_code == 1
    assert "is not empty" in refused.stderr
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_part_of_other_options_that_sealed_nothing_is_in_nobodys_way(
    plain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    wrong = command(plain / "in", target, "--part", "1/2", "--dtype", "float16")[3:]
    # Its journal is there after the second step; nothing is sealed.
    killed = finish([*module_that_dies(2), *wrong])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((target / STAGING).glob("journal.*.jsonl"))
    for which in ("1/2", "2/2"):
        part(plain, target, which)
    assert finished(plain, target)


def test_an_end_of_other_options_that_sealed_nothing_is_in_nobodys_way(
    plain: Path, tmp_path: Path
) -> None:
    """It was killed before its first file, and what it had left was refused as another's work."""
    target = tmp_path / "out"
    wrong = command(plain / "in", target, "--dtype", "float16")[3:]
    # Its journal is there after the second step; nothing is sealed.
    killed = finish([*module_that_dies(2), *wrong])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (target / STAGING / "journal.jsonl").exists()
    for which in ("1/2", "2/2"):
        part(plain, target, which)
    assert finished(plain, target)


@pytest.mark.parametrize("leftover", [".nfs0001", "model-00001-of-00002.safetensors.1.part"])
def test_a_leftover_in_the_staging_folder_does_not_hide_a_finished_model(
    plain: Path, tmp_path: Path, leftover: str
) -> None:
    """The same command said that the folder was not empty; a journal still says that work is there."""
    shutil.copytree(plain / "out", tmp_path / "out")
    (tmp_path / "out" / STAGING).mkdir()
    (tmp_path / "out" / STAGING / leftover).write_bytes(b"x")
    for more in (), ("--part", "1/2"):
        again = convert(plain, tmp_path / "out", *more)
        assert again.exit_code == 0, again.stderr
        assert "already converted" in again.stdout
    (tmp_path / "out" / STAGING / "journal.jsonl").write_bytes(b"")
    assert "already converted" not in convert(plain, tmp_path / "out").stdout


def test_parts_of_two_conversions_are_not_joined(plain: Path, tmp_path: Path) -> None:
    """They had started together; the work of one was dropped without a word."""
    target = tmp_path / "out"
    part(plain, target, "1/2")
    other = convert(plain, tmp_path / "other", "--part", "2/2", "--dtype", "float16")
    assert other.exit_code == 0, other.stderr
    [journal] = (tmp_path / "other" / STAGING).glob("journal.*.jsonl")
    shutil.copy(journal, target / STAGING)
    refused = convert(plain, target)
    assert refused.exit_code == 1
    assert "holds parts of two conversions: dtype" in refused.stderr
    assert convert(plain, target, "--restart").exit_code == 0
    assert content(target) == content(plain / "out")


@pytest.mark.parametrize(
    "which", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "1/99999999999"]
)
def test_what_is_no_part_is_refused(plain: Path, tmp_path: Path, which: str) -> None:
    refused = convert(plain, tmp_path / "out", f"--part={which}")
    assert refused.exit_code == 2
    assert "such as 3/8, counted from 1, of at most 999999" in refused.stderr
