"""Every hostile checkpoint ends in one clear line, every odd but good one in its very bits."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codellama_convert import (
    Options,
    RunOptions,
    convert_checkpoint,
    plan_conversion,
    verify_output,
)
from codellama_convert.cli.commands import main
from codellama_convert.convert.run import run
from codellama_convert.errors import CheckpointError, VerifyError
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.watch import Watch
from tests.faults.hostile import CASES, Case
from tests.faults.hostile.rank_bytes import RANK
from tests.fuzzers.running import time_limit
from tests.witness.checkpoints import expected_state_dict, read_output, same_bits

ROOT = Path(__file__).parents[2]
TIME_LIMIT_SECONDS = 60
# A conversion of the control takes 45 MB; what is hostile may cost 20 more.
MAX_RSS_BYTES = 64 << 20

_RUN_AND_MEASURE = """
import os
from codellama_convert.cli.commands import main
try:
    main(prog_name="codellama-convert")
finally:
    with open("/proc/self/status") as status, open(os.environ["PEAK_FILE"], "w") as peak:
        peak.writelines(line for line in status if line.startswith("VmHWM"))
"""

# In a process of their own, and measured: the first of each family that costs or attacks, these,
# and every way in which the output cannot be written.
_IN_A_PROCESS_TOO = {
    "control",
    "control_with_tokenizer",
    "two_ranks",
    "truncated_half",
    "empty_file",
    "consolidated_is_fifo",
    "params_is_fifo",
    "tokenizer_is_fifo",
    "consolidated_is_dev_zero",
    "params_refused-html",
    "params_contradict_the_rank-n-layers-16-million",
    "torn_pickle-string-of-4-gb",
}


def _in_a_process() -> list[str]:
    chosen, families = [], set()
    for name, case in CASES.items():
        family = name.partition("-")[0]
        costly = (case.bomb or case.armed) and family not in families
        if costly or name in _IN_A_PROCESS_TOO or name.startswith("output_"):
            chosen.append(name)
            families.add(family)
    return sorted(chosen)


IN_A_PROCESS = _in_a_process()
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")


SAYS_IT_ALL = re.compile("cannot open: |cannot create: |not a regular file|is a folder, not a file")


@dataclass(frozen=True)
class Outcome:
    """How a run of the command line ended."""

    status: int
    stdout: str
    stderr: str


def run_here(arguments: list[str]) -> Outcome:
    with time_limit(TIME_LIMIT_SECONDS):
        result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def run_process(arguments: list[str], peak_file: Path) -> Outcome:
    """Run the command line in a process, and write its peak memory to a file."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", _RUN_AND_MEASURE, *arguments],
        cwd=ROOT,
        env=os.environ | one_thread | {"PYTHONPATH": str(ROOT), "PEAK_FILE": str(peak_file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def arguments_of(case: Case, folder: Path, out: Path) -> list[str]:
    options = [option.replace("{input}", str(folder)) for option in case.options]
    where = [] if "--output_dir" in options else ["--output_dir", str(out)]
    return ["--input_dir", str(folder), "--max_position_embeddings", "64", *where, *options]


def snapshot(folder: Path) -> dict[str, tuple[int, ...] | str]:
    """Tell everything about a folder's entries that a reader must not change."""
    found: dict[str, tuple[int, ...] | str] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        told = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
        if stat.S_ISREG(status.st_mode) and status.st_size < 64 << 20:
            found[str(path)] = f"{told} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            found[str(path)] = told
    return found


def check(case: Case, tmp_path: Path, run: Callable[[list[str]], Outcome]) -> None:
    folder, out = tmp_path / "CodeLlama-7b", tmp_path / "out"
    state, shape = case.write(folder)
    before = snapshot(folder)
    outcome = run(arguments_of(case, folder, out))
    assert "Traceback" not in outcome.stderr, outcome.stderr
    assert snapshot(folder) == before, "the input was changed"
    assert not (tmp_path / "canary").exists(), "the payload ran"
    if case.accepted:
        assert outcome.status == 0, outcome.stderr
        expected, found = expected_state_dict(state, shape), read_output(out)
        assert sorted(found) == sorted(expected)
        assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
        for fact in case.facts:
            assert fact in outcome.stderr, f"{fact!r} is not told: {outcome.stderr}"
        return
    assert outcome.status == 1, outcome
    assert not out.exists() or not any(out.iterdir()), "something was published"
    *notes, line = outcome.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes), outcome.stderr
    assert line.startswith("Error: "), outcome.stderr
    assert outcome.stderr.endswith(line + "\n")
    assert "\x1b" not in line
    assert len(line) < 700 + len(str(folder)), f"{len(line)} characters"
    for fact in (case.names or "", *case.facts):
        assert fact in line, f"{fact!r} is not told: {line}"
    # What, where, and what to do; where the system's own words say it, there is no more to say.
    assert "; " in line or SAYS_IT_ALL.search(line), line


@pytest.mark.parametrize("name", sorted(set(CASES) - set(IN_A_PROCESS)))
def test_a_checkpoint_is_converted_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path, run_here)


@needs_proc
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_command_says_the_same_and_stays_small(name: str, tmp_path: Path) -> None:
    peak_file = tmp_path / "peak"

    def run(arguments: list[str]) -> Outcome:
        return run_process(arguments, peak_file)

    check(CASES[name], tmp_path, run)
    match = re.search(r"(\d+) kB", peak_file.read_text())
    assert match is not None
    assert int(match[1]) << 10 <= MAX_RSS_BYTES, f"{name}: {int(match[1]) / 1024:.1f} MiB"


@pytest.mark.parametrize("io_mode", ["buffered", "auto"])
def test_a_file_that_is_cut_while_it_is_read_is_one_line(tmp_path: Path, io_mode: IoMode) -> None:
    """The rank while it is converted, then the output while it is verified."""
    folder, out = tmp_path / "in", tmp_path / "out"
    CASES["control"].write(folder)
    options = Options(skip_tokenizer=True, io_mode=io_mode, workers=1, tile_bytes=16)
    job = plan_conversion(folder, options)
    rank = (folder / RANK).read_bytes()

    def cut(path: Path, n_bytes: int) -> Callable[[int], None]:
        return lambda _: os.truncate(path, n_bytes)

    with pytest.raises(CheckpointError) as caught:
        run(job, out, watch=Watch(cut(folder / RANK, 3000)))
    assert re.search(rf"{RANK}: unexpected end of file at byte \d+; the file is", str(caught.value))
    assert not out.exists() or not list(out.glob("*.safetensors"))
    (folder / RANK).write_bytes(rank)
    job = plan_conversion(folder, options)
    convert_checkpoint(folder, out, options=options, run_options=RunOptions(restart=True))
    assert verify_output(out, job, progress=lambda _: None).problems == ()
    with pytest.raises(VerifyError, match=r"model\.safetensors: unexpected end of file at byte"):
        verify_output(out, job, progress=cut(out / "model.safetensors", 3000))


def as_ordinary_user(arguments: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as someone whom permissions stop, which root is not."""
    command = [sys.executable, "-m", "codellama_convert", *arguments]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv: permissions do not stop root")
        powers = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, **more
    )


@pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
def test_a_folder_that_may_be_listed_but_not_entered_is_one_line(tmp_path: Path) -> None:
    """Looking whether a file exists in it raised PermissionError, up to Python 3.13."""
    folder, out = tmp_path / "CodeLlama-7b", tmp_path / "out"
    CASES["control_with_tokenizer"].write(folder)
    arguments = ["--input_dir", str(folder), "--output_dir", str(out)]
    assert as_ordinary_user(arguments).returncode == 0
    compared = ["verify", *arguments]
    assert as_ordinary_user(compared).returncode == 0
    for closed, command in ((folder, ["plan", *arguments]), (folder, compared), (out, compared)):
        closed.chmod(0o444)
        ended = as_ordinary_user(command)
        closed.chmod(0o755)
        *notes, line = ended.stderr.splitlines()
        assert ended.returncode == 1, ended
        assert line.startswith(f"Error: {closed}/"), ended.stderr
        assert "Permission denied" in line
        assert all(note.startswith("note: ") for note in notes)


@pytest.mark.parametrize("name", sorted(n for n, case in CASES.items() if case.armed))
def test_the_payloads_are_live(name: str, tmp_path: Path) -> None:
    """Without this, a payload that never could run would prove nothing."""
    folder = tmp_path / "input"
    CASES[name].write(folder)
    with zipfile.ZipFile(folder / RANK) as archive:
        pickled = archive.read("archive/data.pkl")
    command = (
        "import pickle, sys\n"
        "class Loader(pickle.Unpickler):\n"
        "    def persistent_load(self, pid): return None\n"
        "    def find_class(self, module, name):\n"
        "        if module.startswith('torch'): return lambda *a: None\n"
        "        return super().find_class(module, name)\n"
        "Loader(sys.stdin.buffer).load()\n"
    )
    subprocess.run([sys.executable, "-c", command], input=pickled, timeout=60, check=False)
    assert (tmp_path / "canary").exists()


def test_the_corpus_names_each_case_once_and_has_both_kinds() -> None:
    assert len(CASES) > 250
    assert sum(case.accepted for case in CASES.values()) > 40
