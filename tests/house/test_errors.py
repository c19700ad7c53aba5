"""Problems cross processes as they are, and list no more names than one can read."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from codellama_convert.errors import ConvertError, Interrupted, OutputError, and_others, listed

RESUMED = {"OutputError", "WorkerError", "Interrupted"}


def kinds(base: type[ConvertError] = ConvertError) -> Iterator[type[ConvertError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def made(kind: type[ConvertError]) -> ConvertError:
    if issubclass(kind, Interrupted):
        return kind("tensor 'x' is odd", signal_number=15, hint="run it again")
    return kind("tensor 'x' is odd", path=Path("rank.pth"), hint="download it again")


def caused(cause: BaseException | None) -> ConvertError:
    problem = ConvertError("cannot read", path="rank.pth")
    problem.__cause__ = cause
    return problem


def raise_caused_by(cause: OSError | None) -> None:
    raise ConvertError("cannot read", path="rank.pth") from cause


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_a_problem_is_the_same_in_another_process(kind):
    """`Interrupted` could not be unpickled, for its keyword, and broke a whole pool of processes."""
    problem = made(kind)
    for again in (pickle.loads(pickle.dumps(problem)), copy.copy(problem)):
        assert type(again) is kind
        assert str(again) == str(problem)
        assert again.args == problem.args
        for name in ("message", "path", "hint", "can_resume", "may_pass", "signal_number"):
            assert getattr(again, name, None) == getattr(problem, name, None)
    assert problem.can_resume == (kind.__name__ in RESUMED)


def test_a_cause_of_the_system_can_be_resumed_and_others_cannot():
    assert caused(OSError(5, "I/O error")).can_resume
    assert not caused(ValueError("odd")).can_resume
    assert not caused(None).can_resume


def test_what_one_machine_lacks_may_pass_and_a_full_disk_does_not():
    assert caused(OSError(errno.ESTALE, "stale")).may_pass
    assert pickle.loads(pickle.dumps(caused(OSError(errno.EMFILE, "too many")))).may_pass
    for cause in (OSError(errno.ENOSPC, "full"), ValueError("odd"), None):
        assert not pickle.loads(pickle.dumps(caused(cause))).may_pass


def test_a_pool_of_processes_keeps_whether_a_run_can_be_resumed():
    """A pool replaces the cause by the text of the worker's traceback."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for cause, can_resume in ((OSError(5, "I/O error"), True), (None, False)):
            found = pool.submit(raise_caused_by, cause).exception()
            assert isinstance(found, ConvertError)
            assert not isinstance(found.__cause__, OSError)
            assert found.can_resume == can_resume


def test_a_full_disk_can_be_resumed_whoever_says_so():
    assert pickle.loads(pickle.dumps(OutputError("cannot write"))).can_resume


def test_names_are_listed_up_to_a_limit_and_the_others_counted():
    assert listed(["a"], 1) == listed(["a"]) == "a"
    assert listed(["a", "b"], 1) == "a and 1 more"
    assert listed([*"abcdefgh"]) == "a, b, c, d, e, f, g, h"
    assert listed([*"abcdefghij"]) == "a, b, c, d, e, f, g, h and 2 more"
    assert [and_others([*names]) for names in ("a", "ab", "abc")] == [
        "",
        " (and 1 other)",
        " (and 2 others)",
    ]
