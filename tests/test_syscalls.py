"""What a conversion asks of the system, and what it says when the system refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import GQA, random_model, save_checkpoint
from tests.outputs import STAGING, command, content, finish
from tests.strace import trace, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("syscalls")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    assert finish(command(folder / "in", folder / "out")).returncode == 0
    return folder


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "ENOSYS"])
def test_where_space_cannot_be_reserved_no_byte_is_written_twice(
    converted: Path, tmp_path: Path, error: str
) -> None:
    """glibc's posix_fallocate then writes into every block of the file: 13 GB, twice."""
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1")
    done = trace(
        arguments, ["fallocate", "ftruncate", "pwrite64"], inject=[f"fallocate:error={error}"],
        log=tmp_path / "log",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert content(target) == content(converted / "out")
    assert any(call.injected for call in done.calls)
    written = sum(
        int(call.result) for call in done.calls
        if call.name == "pwrite64" and str(target / STAGING) in call.paths[0]
    )  # fmt: skip
    assert written == sum(len(bytes_) for bytes_ in content(target).values())
