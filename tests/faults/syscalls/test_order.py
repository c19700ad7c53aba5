"""What is saved in another order, or not at all, would be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.syscalls.bench import Bench
from tests.faults.syscalls.durability import complaints
from tests.faults.syscalls.scenes import SCENES, Scene
from tests.faults.syscalls.strace import Call, is_kind
from tests.outputs import STAGING


def calls_of(scene: Scene, place: Path) -> tuple[list[Call], Path]:
    """Run a scene; give its calls on the output folder, and that folder."""
    bench = Bench(place / "bench", scene)
    target = bench.prepare("out")
    done = bench.trace(target)
    return [c for c in done.calls if any(str(target) in path for path in c.paths)], target


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path]:
    """The calls of a run over an older result, and its folder."""
    return calls_of(SCENES[1], tmp_path_factory.mktemp("log"))


def complaints_of(calls: list[Call], target: Path) -> list[str]:
    held = frozenset({"config.json", "model.safetensors.index.json"})
    return complaints(calls, target, held=held)


def test_an_output_folder_is_not_judged_before_it_is_used(log: tuple[list[Call], Path]) -> None:
    """click looked whether it may be read, and what was wrong was four lines and exit status 2."""
    calls, _ = log
    assert [call for call in calls if call.name in ("access", "faccessat", "faccessat2")] == []


def test_no_fsync_of_a_run_can_be_left_out(log: tuple[list[Call], Path]) -> None:
    calls, target = log
    assert complaints_of(calls, target) == []
    last_old = first(calls, "unlink", f"{target}/tokenizer_config.json")
    found = {}
    for number, call in enumerate(calls):
        if call.name == "fsync":
            found[number] = complaints_of([*calls[:number], *calls[number + 1 :]], target)
    assert len(found) > 20
    unmissed = [number for number, missed in found.items() if not missed]
    # That old shards are gone is saved for order's sake: with their index gone nothing leads there.
    assert unmissed == [next(number for number in found if number > last_old)]


def first(calls: list[Call], name: str, end: str, *, last: bool = False) -> int:
    found = [n for n, c in enumerate(calls) if is_kind(c, name) and c.paths[-1].endswith(end)]
    return found[-1 if last else 0]


def moved(calls: list[Call], source: int, to: int) -> list[Call]:
    rest = [*calls[:source], *calls[source + 1 :]]
    return [*rest[:to], calls[source], *rest[to:]]


def index_first(calls: list[Call], target: Path) -> list[Call]:
    index = first(calls, "rename", f"{target}/model.safetensors.index.json")
    return moved(calls, index, first(calls, "rename", f"{target}/config.json"))


def index_before_the_shards_names(calls: list[Call], target: Path) -> list[Call]:
    index = first(calls, "rename", f"{target}/model.safetensors.index.json")
    return moved(calls, index, first(calls, "rename", f"{target}/tokenizer_config.json") + 1)


def old_index_last(calls: list[Call], target: Path) -> list[Call]:
    index = first(calls, "unlink", f"{target}/model.safetensors.index.json")
    return moved(calls, index, first(calls, "unlink", f"{target}/tokenizer_config.json"))


def header_first(calls: list[Call], target: Path) -> list[Call]:
    data = next(n for n, c in enumerate(calls) if c.name == "pwrite64" and "/model-" in c.paths[0])
    path = calls[data].paths[0]
    header = next(
        n for n, c in enumerate(calls) if c.paths == (path,) and c.arguments.endswith(", 0")
    )
    return moved(calls, header, data)


def journal_line_first(calls: list[Call], target: Path) -> list[Call]:
    line = next(n for n, c in enumerate(calls) if c.name == "write" and "-00001-" in c.arguments)
    name = first(calls, "rename", f"{STAGING}/model-00001-of-00002.safetensors")
    return moved(calls, line, name)


def publishing_before_the_journal(calls: list[Call], target: Path) -> list[Call]:
    line = first(calls, "write", "journal.jsonl", last=True)
    return moved(calls, line, first(calls, "rename", f"{target}/tokenizer_config.json"))


def staging_dropped_before_the_end(calls: list[Call], target: Path) -> list[Call]:
    last = max(n for n, c in enumerate(calls) if c.name == "fsync")
    return moved(calls, last, len(calls) - 1)


def written_in_its_place(calls: list[Call], target: Path) -> list[Call]:
    """Not an order, but the same log can tell it."""
    path = next(c.paths[0] for c in calls if c.name == "pwrite64" and "/config.json." in c.paths[0])
    there = (f"{target}/config.json",)
    return [
        replace(call, paths=there) if (call.name, call.paths) == ("pwrite64", (path,)) else call
        for call in calls
    ]


@pytest.mark.parametrize(
    "reorder",
    [
        index_first, index_before_the_shards_names, old_index_last, header_first,
        journal_line_first, publishing_before_the_journal, staging_dropped_before_the_end,
        written_in_its_place,
    ],
)  # fmt: skip
def test_a_wrong_order_would_be_seen(
    log: tuple[list[Call], Path], reorder: Callable[[list[Call], Path], list[Call]]
) -> None:
    calls, target = log
    wrong = reorder(calls, target)
    assert sorted(map(str, wrong)) == sorted(map(str, calls)) or reorder is written_in_its_place
    assert complaints_of(wrong, target) != []


# --- the order of the way back --------------------------------------------------------------------


@pytest.fixture(scope="module")
def log_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], Path]:
    """The calls of a run over older ranks, and its folder."""
    return calls_of(SCENES[6], tmp_path_factory.mktemp("ranks"))


def params_first(calls: list[Call], target: Path) -> list[Call]:
    params = first(calls, "rename", f"{target}/params.json")
    return moved(calls, params, first(calls, "rename", f"{target}/consolidated.00.pth"))


def old_params_last(calls: list[Call], target: Path) -> list[Call]:
    params = first(calls, "unlink", f"{target}/params.json")
    return moved(calls, params, first(calls, "unlink", f"{target}/tokenizer.model"))


def _seal_of_a_rank(calls: list[Call]) -> tuple[int, int]:
    """Find the sync of a rank's data, and the directory that is written next."""
    end = next(
        n for n, c in enumerate(calls)
        if c.name == "pwrite64" and "/consolidated.02" in c.paths[0] and c.arguments.endswith(", 0")
    )  # fmt: skip
    sync, directory = end - 2, end - 1
    assert [calls[n].name for n in (sync, directory)] == ["fsync", "pwrite64"]
    assert calls[sync].paths == calls[directory].paths == calls[end].paths
    return sync, directory


def directory_before_its_data(calls: list[Call], target: Path) -> list[Call]:
    del target
    sync, directory = _seal_of_a_rank(calls)
    return moved(calls, directory, sync)


def data_behind_its_directory(calls: list[Call], target: Path) -> list[Call]:
    del target
    sync, directory = _seal_of_a_rank(calls)
    data = next(
        n for n, c in enumerate(calls) if c.paths == calls[sync].paths and c.name == "pwrite64"
    )
    return moved(calls, data, directory)


def rank_journaled_first(calls: list[Call], target: Path) -> list[Call]:
    del target
    line = next(n for n, c in enumerate(calls) if c.name == "write" and "dated.01" in c.arguments)
    return moved(calls, line, first(calls, "rename", f"{STAGING}/consolidated.01.pth"))


@pytest.mark.parametrize(
    "reorder",
    [
        params_first, old_params_last, directory_before_its_data, data_behind_its_directory,
        rank_journaled_first,
    ],
)  # fmt: skip
def test_a_wrong_order_of_ranks_would_be_seen(
    log_of_ranks: tuple[list[Call], Path], reorder: Callable[[list[Call], Path], list[Call]]
) -> None:
    calls, target = log_of_ranks
    held = frozenset({"params.json"})
    assert complaints(calls, target, held=held) == []
    wrong = reorder(calls, target)
    assert sorted(map(str, wrong)) == sorted(map(str, calls)) != list(map(str, wrong))
    assert complaints(wrong, target, held=held) != []
