"""Bytes come from a disk and get to it the same, whatever the way and the piece size."""

from __future__ import annotations

import os
import random
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

from codellama_convert.errors import CheckpointError, ConfigError, OutputError
from codellama_convert.storage import blocks as files
from codellama_convert.storage.blocks import (
    BLOCK_BYTES,
    IoMode,
    aligned_buffer,
    block_ceil,
    block_floor,
)
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.output_file import OutputFile, SpanWriter

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(3).randbytes(5 * BLOCK_BYTES + 1234)


def has_direct_io(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(bytes(BLOCK_BYTES))
    with InputFile(probe, io_mode="auto") as file:
        return file.direct


@pytest.fixture(params=["buffered", "auto", "no-positional-io"])
def io_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> IoMode:
    """The page cache, past it where the file system can, and the way of Windows: seek and read."""
    if request.param == "no-positional-io":
        monkeypatch.setattr(files, "_HAS_POSITIONAL_IO", False)
        return "auto"
    mode: IoMode = request.param
    return mode


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "floor", "ceil"),
    [(0, 0, 0), (1, 0, 4096), (4095, 0, 4096), (4096, 4096, 4096), (4097, 4096, 8192)],
)
def test_block_boundaries(position: int, floor: int, ceil: int) -> None:
    assert (block_floor(position), block_ceil(position)) == (floor, ceil)


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 4097])
def test_a_buffer_has_room_for_a_phase_at_both_ends(n_bytes: int) -> None:
    buffer = aligned_buffer(n_bytes)
    assert len(buffer) >= block_ceil(n_bytes) + BLOCK_BYTES
    assert len(buffer) % BLOCK_BYTES == 0
    assert not any(buffer)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 511, 4095, 4096, 4097, 3 * 4096 + 17, len(CONTENT) - 1])
@pytest.mark.parametrize("n_bytes", [0, 1, 2, 513, 4096, 4097, 9000])
def test_a_window_holds_the_bytes_of_its_place(
    source: Path, io_mode: IoMode, offset: int, n_bytes: int
) -> None:
    n_bytes = min(n_bytes, len(CONTENT) - offset)
    buffer = aligned_buffer(n_bytes)
    with InputFile(source, io_mode=io_mode) as file:
        assert (
            bytes(file.read_window(offset, n_bytes, buffer)) == CONTENT[offset : offset + n_bytes]
        )
        assert file.read_exact(offset, n_bytes) == CONTENT[offset : offset + n_bytes]


def test_many_threads_read_one_file(source: Path, io_mode: IoMode) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng, buffer = random.Random(seed), aligned_buffer(9000)
        for _ in range(60):
            at = rng.randrange(len(CONTENT) - 9000)
            if bytes(file.read_window(at, 9000, buffer)) != CONTENT[at : at + 9000]:
                wrong.append(at)

    with InputFile(source, io_mode=io_mode) as file:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_file_that_ends_before_is_an_error_that_says_where(source: Path, io_mode: IoMode) -> None:
    buffer = aligned_buffer(4096)
    with InputFile(source, io_mode=io_mode) as file:
        assert len(file.read_window(len(CONTENT) - 4096, 4096, buffer)) == 4096
        with pytest.raises(CheckpointError, match=str(len(CONTENT))):
            file.read_window(len(CONTENT) - 4095, 4096, buffer)
        with pytest.raises(CheckpointError, match=str(len(CONTENT))):
            file.read_exact(len(CONTENT), 1)


def test_a_file_truncated_after_opening_is_an_error_and_no_signal(
    source: Path, io_mode: IoMode
) -> None:
    """A mapped file would end the process with SIGBUS here."""
    with InputFile(source, io_mode=io_mode) as file:
        os.truncate(source, 5000)
        with pytest.raises(CheckpointError, match="5000"):
            file.read_window(4096, 4096, aligned_buffer(4096))


def test_reading_leaves_no_descriptor_open(source: Path, io_mode: IoMode) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors are counted in /proc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        file = InputFile(source, io_mode=io_mode)
        file.close()
        file.close()
    with pytest.raises(CheckpointError):
        InputFile(source.parent, io_mode=io_mode)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_kind_of_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        InputFile(tmp_path / "params.json", error=ConfigError)
    with pytest.raises(CheckpointError, match="file name"):
        InputFile(tmp_path / "a\0b")


def test_two_names_of_one_file_have_one_identity(source: Path, tmp_path: Path) -> None:
    os.link(source, tmp_path / "twin")
    (tmp_path / "other").write_bytes(CONTENT)
    with (
        InputFile(source) as first,
        InputFile(tmp_path / "twin") as second,
        InputFile(tmp_path / "other") as other,
    ):
        assert first.identity == second.identity != other.identity


# --- writing --------------------------------------------------------------------------------------


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
