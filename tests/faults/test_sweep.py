"""The command of the whole sweep: its lines, its exit status, and that a failure is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.families import FAMILIES
from tests.faults.sweep import main, run
from tests.faults.syscalls import strace
from tests.faults.verdict import Verdict


def good(workers: int) -> Iterator[Verdict]:
    yield Verdict("a family", f"{workers} workers", passed=True)


def bad(workers: int) -> Iterator[Verdict]:
    yield Verdict("one", "1 right", passed=True)
    yield Verdict("two", "1 wrong", passed=False, problems=["what went wrong"])


def test_one_failure_fails_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert run({"good": good}, 3) == 0
    assert capsys.readouterr().out == "pass  a family: 3 workers (0 s)\n"
    assert run({"bad": bad, "good": good}, 1) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pass  one: 1 right (0 s)", "FAIL  two: 1 wrong (0 s)", "      what went wrong",
        "pass  a family: 1 workers (0 s)",
    ]  # fmt: skip


def test_the_families_are_those_of_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(FAMILIES) == {
        "fuzz", "kills", "runs", "syscalls", "order", "neighbours", "workers", "sizes",
    }  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in FAMILIES)
    with pytest.raises(SystemExit) as caught:
        main(["others"])
    assert caught.value.code == 2


@pytest.mark.skipif(strace.why_not() is not None, reason=str(strace.why_not()))
def test_a_family_runs_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """And everything is on the disk before what relies on it."""
    status = main(["order"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert [line.partition(":")[0] for line in lines] == [
        f"pass  order, {name}"
        for name in (
            "direct", "over an older result", "one file", "going on", "publishing again",
            "way back, direct", "way back, over an older result", "way back, going on",
            "way back, publishing again", "other ranks",
        )
    ]  # fmt: skip
