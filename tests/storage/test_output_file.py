"""Files are written at any position, past the page cache and through it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_convert.errors import CheckpointError, OutputError
from codellama_convert.storage import blocks as files
from codellama_convert.storage.blocks import BLOCK_BYTES, IoMode
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.output_file import OutputFile, SpanWriter
from tests.storage.content import CONTENT, has_direct_io

ROOT = Path(__file__).parents[2]


def write_spans(
    path: Path,
    io_mode: IoMode,
    spans: list[tuple[int, int]],
    pieces: Iterator[int],
    *,
    threads: bool,
) -> bool:
    """Write CONTENT in spans that share blocks at their edges; tell whether it was direct."""
    output = OutputFile(path, io_mode=io_mode)
    output.reserve(len(CONTENT))

    def work(start: int, end: int, sizes: list[int]) -> None:
        span = SpanWriter(output, start, aligned_buffer(max(sizes)))
        at, number = start, 0
        while at < end:
            n_bytes = min(sizes[number % len(sizes)], end - at)
            span.space(n_bytes)[:] = CONTENT[at : at + n_bytes]
            span.commit(n_bytes)
            at += n_bytes
            number += 1
        span.finish()

    jobs = [
        threading.Thread(target=work, args=(start, end, [next(pieces) for _ in range(7)]))
        for start, end in spans
    ]
    for job in jobs:
        job.start()
        if not threads:
            job.join()
    for job in jobs:
        job.join()
    direct = output.direct
    output.sync()
    output.close()
    return direct


def endless(sizes: list[int]) -> Iterator[int]:
    while True:
        yield from sizes


@pytest.mark.parametrize("phase", [0, 1, 8, 511, 2048, 4095])
@pytest.mark.parametrize("piece", [1, 7, 4095, 4096, 4097, 12289])
def test_a_span_puts_every_byte_in_its_place(
    tmp_path: Path, io_mode: IoMode, phase: int, piece: int
) -> None:
    path = tmp_path / "written"
    spans = [(0, phase), (phase, len(CONTENT))] if phase else [(0, len(CONTENT))]
    write_spans(path, io_mode, spans, endless([piece]), threads=False)
    assert path.read_bytes() == CONTENT


@settings(max_examples=60, deadline=None)
@given(
    marks=st.lists(st.integers(1, len(CONTENT) - 1), max_size=6, unique=True),
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=9),
    mode=st.sampled_from(("buffered", "auto")),
)
def test_neighbours_that_share_a_block_do_not_harm_each_other(
    tmp_path_factory: pytest.TempPathFactory, marks: list[int], sizes: list[int], mode: IoMode
) -> None:
    path = tmp_path_factory.mktemp("spans") / "written"
    edges = [0, *sorted(marks), len(CONTENT)]
    spans = list(zip(edges, edges[1:], strict=False))  # noqa: RUF007 - of plain ints
    write_spans(path, mode, spans, endless(sizes), threads=True)
    assert path.read_bytes() == CONTENT


def test_direct_io_is_used_where_it_is_asked_for(tmp_path: Path, source: Path) -> None:
    if not has_direct_io(tmp_path):
        pytest.skip("the file system of the temporary folder refuses direct I/O")
    with InputFile(source, io_mode="direct") as file:
        assert file.direct
    with InputFile(source, io_mode="buffered") as file:
        assert not file.direct
    assert write_spans(
        tmp_path / "w", "direct", [(0, len(CONTENT))], endless([9000]), threads=False
    )
    assert (tmp_path / "w").read_bytes() == CONTENT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files in memory")
def test_a_file_in_memory_has_no_cache_to_pass_by() -> None:
    """Linux 6.6 and later accepts the flag for it and ignores it: a run said that it was direct."""
    in_memory = os.memfd_create("in memory")
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        path = Path(f"/proc/self/fd/{in_memory}")
        with InputFile(path, io_mode="auto") as file:
            assert not file.direct
        with pytest.raises(CheckpointError, match="direct I/O"):
            InputFile(path, io_mode="direct")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        os.close(in_memory)


@pytest.fixture
def strict_folder() -> Iterator[Path]:
    """A folder whose file system opens files for direct I/O and refuses unaligned writes."""
    places = (tempfile.gettempdir(), "/var/tmp") if hasattr(os, "O_DIRECT") else ()
    for place in places:
        with tempfile.TemporaryDirectory(dir=place) as name:
            if has_direct_io(Path(name)) and not _takes_unaligned(Path(name)):
                yield Path(name)
                return
    pytest.skip("no file system here has direct I/O that minds alignment")


def _takes_unaligned(folder: Path) -> bool:
    fd = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    try:
        os.pwrite(fd, b"x", 0)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    strict_folder: Path,
) -> None:
    """Each of several threads meets the refusal; one that closed the file took it from the rest."""
    n_threads, n_blocks = 8, 4
    blocks = CONTENT[: n_blocks * BLOCK_BYTES]
    memory = aligned_buffer(len(blocks) + 1)
    unaligned = memory[1 : 1 + len(blocks)]
    unaligned[:] = blocks
    for number in range(10):
        output = OutputFile(strict_folder / str(number), io_mode="auto")
        assert output.direct
        together = threading.Barrier(n_threads)

        def write(
            place: int, output: OutputFile = output, together: threading.Barrier = together
        ) -> None:
            together.wait()
            for block in range(n_blocks):
                at = block * BLOCK_BYTES
                output.write_blocks(place * len(blocks) + at, unaligned[at : at + BLOCK_BYTES])

        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(write, range(n_threads)))
        assert not output.direct
        output.close()
        assert (strict_folder / str(number)).read_bytes() == blocks * n_threads
    strict = OutputFile(strict_folder / "strict", io_mode="direct")
    with pytest.raises(OutputError, match="Invalid argument"):
        strict.write_blocks(0, unaligned)
    strict.abandon()


def test_without_positional_io_direct_is_refused_and_auto_goes_on(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_HAS_POSITIONAL_IO", False)
    with pytest.raises(CheckpointError, match="--io"):
        InputFile(source, io_mode="direct")
    with pytest.raises(OutputError, match="--io"):
        OutputFile(tmp_path / "w", io_mode="direct")
    with InputFile(source, io_mode="auto") as file:
        assert not file.direct


@pytest.mark.skipif(os.name == "nt", reason="modes as POSIX has them")
def test_a_new_file_has_the_users_umask_and_replaces_nothing(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        OutputFile(tmp_path / "new").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    with pytest.raises(OutputError, match="File exists"):
        OutputFile(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError):
        OutputFile(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 100_000])
def test_a_reserved_file_has_its_size_and_takes_its_space(tmp_path: Path, n_bytes: int) -> None:
    output = OutputFile(tmp_path / "new")
    output.reserve(n_bytes)
    output.close()
    status = (tmp_path / "new").stat()
    assert status.st_size == n_bytes
    if sys.platform == "linux":
        assert status.st_blocks * 512 >= n_bytes


_BEYOND_THE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from codellama_convert.errors import OutputError
from codellama_convert.storage.output_file import OutputFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
output = OutputFile(Path(sys.argv[1]))
output.reserve(100_000)
print("reserved")
try:
    output.reserve(100_001)
except OutputError as problem:
    print(problem)
try:
    output.write_at(99_999, b"ab")
except OutputError as problem:
    print(problem)
output.abandon()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_file_larger_than_allowed_is_an_error_when_its_space_is_reserved(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _BEYOND_THE_LIMIT, str(tmp_path / "new")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stderr == ""
    reserved, too_large, written = finished.stdout.splitlines()
    assert reserved == "reserved"
    assert str(tmp_path / "new") in too_large
    assert "100001 bytes" in too_large
    assert "too large" in too_large
    assert "100000" in written
    assert "too large" in written


def test_a_failed_write_says_where(tmp_path: Path) -> None:
    """The device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    output = OutputFile(tmp_path / "new")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, output._fd)
    os.close(full)
    with pytest.raises(OutputError, match="byte 7: No space left"):
        output.write_at(7, b"abc")
    output.abandon()
    output.abandon()
