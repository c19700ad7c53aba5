"""Where no other platform is at hand: the package under the rules that Linux can enforce for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from codellama_convert.cli import machine
from codellama_convert.convert.run import run
from codellama_convert.errors import CheckpointError, Interrupted
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.storage import blocks as files
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Watch
from tests.conftest import links_or_skip
from tests.faults.dying import run_and_die
from tests.outputs import (
    ROOT,
    SHARD_BYTES,
    STAGING,
    StopAfter,
    command,
    content,
    convert_whole,
    environment,
    finish,
    loads,
)
from tests.storage.windows import REFUSED

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="open files are listed in /proc")


def as_on_windows(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of `tests.outputs` under the rules of Windows."""
    assert arguments[1:3] == ["-m", "codellama_convert"]
    return finish([arguments[0], "-m", "tests.storage.windows", *arguments[3:]])


# --- Windows --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_whole(tmp_path_factory.mktemp("platforms"))


@needs_proc
def test_under_the_rules_of_windows_the_same_bytes_come_out(whole: Path, tmp_path: Path) -> None:
    """The lock was none there; now it is one, and what is open is not moved or removed."""
    target = tmp_path / "out"
    for more in (["--verify"], ["--overwrite", "--verify"]):
        done = as_on_windows(command(whole / "in", target, *more))
        assert (done.returncode, REFUSED in done.stderr) == (0, False), done.stderr
        assert content(target) == content(whole / "out")
    verify = [sys.executable, "-m", "codellama_convert", "verify", "--output_dir", str(target)]
    done = as_on_windows([*verify, "--input_dir", str(whole / "in")])
    assert "equals the checkpoint" in done.stdout, done.stderr


@needs_proc
@pytest.mark.parametrize("looks", [12, 30])
def test_under_the_rules_of_windows_a_stopped_run_is_resumed(
    whole: Path, tmp_path: Path, looks: int
) -> None:
    target = tmp_path / "out"
    options = Options(max_shard_bytes=SHARD_BYTES, workers=1, tile_bytes=8192)
    with pytest.raises(Interrupted):
        run(plan_conversion(whole / "in", options), target, watch=Watch(stop=StopAfter(looks)))
    staged = {path.name for path in (target / STAGING).iterdir()}
    assert "journal.jsonl" in staged
    done = as_on_windows(command(whole / "in", target))
    assert (done.returncode, REFUSED in done.stderr) == (0, False), done.stderr
    assert content(target) == content(whole / "out")
    assert not (target / STAGING).exists()


@needs_proc
@pytest.mark.parametrize(("step", "times"), [("file moved", 5), ("published", 1)])
def test_under_the_rules_of_windows_a_half_published_run_is_resumed(
    whole: Path, tmp_path: Path, step: str, times: int
) -> None:
    """What was moved is read to be sure of it, and closed before it is moved back."""
    target = tmp_path / "out"
    options = Options(max_shard_bytes=SHARD_BYTES)
    run_and_die(plan_conversion(whole / "in", options), target, step, times=times)
    done = as_on_windows(command(whole / "in", target))
    assert (done.returncode, REFUSED in done.stderr) == (0, False), done.stderr
    assert content(target) == content(whole / "out")


_WITH_AN_OPEN_FILE = """
import sys
from tests.storage.windows import obey
obey()
held = open(sys.argv.pop(1), "rb")
from codellama_convert.__main__ import main
main()
"""


@needs_proc
@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "model-00003-of-00006.safetensors"]
)
def test_a_model_that_somebody_has_open_is_not_replaced_by_half(
    whole: Path, tmp_path: Path, name: str
) -> None:
    """Windows neither removes nor replaces an open file: one line, and the same command again."""
    target = tmp_path / "out"
    shutil.copytree(whole / "out", target)
    arguments = command(whole / "in", target, "--overwrite")
    held = [arguments[0], "-c", _WITH_AN_OPEN_FILE, str(target / name), *arguments[3:]]
    done = finish(held)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: {target / name}: cannot remove a file of the old model: ")
    assert loads(target) == (name == "model.safetensors.index.json")
    assert not loads(target) or content(target).items() >= content(whole / "out").items()
    done = as_on_windows(arguments)
    assert (done.returncode, REFUSED in done.stderr) == (0, False), done.stderr
    assert content(target) == content(whole / "out")


_UNDER_RULES = """
import mmap, msvcrt, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
one, two = folder / "one", folder / "two"

def answer(action, hold=str):
    one.write_bytes(bytes(4096))
    two.write_bytes(bytes(4096))
    held = hold()
    try:
        action()
    except PermissionError:
        return "refused"
    return "done"

def mapped():
    with one.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

move, remove = lambda: one.replace(two), lambda: one.unlink()
rename = lambda: folder.rename(folder.with_name("other"))
for line in sys.stdin:
    print(eval(line))
"""


@needs_proc
def test_the_rules_of_windows_refuse_what_it_refuses_and_nothing_else(tmp_path: Path) -> None:
    cases = {
        "answer(move)": "done",
        "answer(move, lambda: one.open().close())": "done",
        "answer(move, one.open)": "refused",
        "answer(move, two.open)": "refused",
        "answer(remove)": "done",
        "answer(remove, two.open)": "done",
        "answer(remove, one.open)": "refused",
        "answer(remove, mapped)": "refused",
        "answer(rename, one.open)": "refused",
        "answer(lambda: os.unlink('one', dir_fd=3))": "refused",
        "answer(lambda: os.close(os.open(one, os.O_RDONLY)))": "done",
        "answer(lambda: os.close(os.open(folder, os.O_RDONLY)))": "refused",
        "answer(lambda: os.close(os.open(one, os.O_WRONLY | os.O_BINARY)))": "done",
        "answer(lambda: os.close(os.open(one, os.O_WRONLY)))": "refused",
        "hasattr(os, 'preadv')": "False",
        "sys.modules['fcntl']": "None",
        "sys.platform": "win32",
    }
    code = f"from tests.storage.windows import obey; obey()\n{_UNDER_RULES}"
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True,
        cwd=ROOT, env=environment(), timeout=120, input="\n".join(cases),
    )  # fmt: skip
    assert dict(zip(cases, child.stdout.split(), strict=False)) == cases, child.stderr
    assert child.stderr.count(REFUSED) == 7, "each is told, but for the folder, which is expected"


_TWO_LOCKS = """
import sys
from pathlib import Path
from tests.storage.windows import obey
obey()
from codellama_convert.errors import OutputError
from codellama_convert.storage.lock import FolderLock
first, second = (FolderLock(Path(sys.argv[1])) for _ in range(2))
first.take()
try:
    second.take()
except OutputError as problem:
    print(problem)
second.release()
print(*sorted(path.name for path in Path(sys.argv[1]).iterdir()))
first.release()
print(*Path(sys.argv[1]).iterdir())
second.take()
second.release()
print(*Path(sys.argv[1]).iterdir())
"""


@needs_proc
def test_windows_has_a_lock_too(tmp_path: Path) -> None:
    """There was none: two conversions into one folder removed each other's staged files."""
    done = finish([sys.executable, "-c", _TWO_LOCKS, str(tmp_path)])
    assert done.stderr == ""
    refused, held, free, again = done.stdout.split("\n")[:4]
    assert "another conversion is running in this folder" in refused
    assert (held, free, again) == (".codellama-convert.lock", "", "")


@pytest.mark.parametrize(("winerror", "how"), [(1314, pytest.skip.Exception), (2, OSError)])
def test_a_link_that_windows_does_not_allow_skips_the_test(
    winerror: int, how: type[BaseException]
) -> None:
    problem = OSError("of a link")
    problem.winerror = winerror
    with pytest.raises(how), links_or_skip():
        raise problem


def test_where_nobody_tells_the_peak_of_memory_it_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.platform != "win32":
        assert (machine.peak_rss_bytes() or 0) > 1 << 20
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(machine, "Path", lambda name: Path("/no/such/place"))
    assert machine.peak_rss_bytes() is None


# --- macOS ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="its fcntl does not know F_NOCACHE")
def test_a_file_system_that_keeps_its_cache_is_read_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has F_NOCACHE instead of O_DIRECT; a refusal ended in a traceback, Linux refuses it."""
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.delattr(files.os, "O_DIRECT")
    (tmp_path / "file").write_bytes(b"content")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with InputFile(tmp_path / "file", io_mode="auto") as file:
        assert not file.direct
        assert file.read_exact(3, 4) == b"tent"
    with pytest.raises(CheckpointError, match="--io"):
        InputFile(tmp_path / "file", io_mode="direct")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
