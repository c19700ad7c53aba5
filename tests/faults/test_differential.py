"""A quick share of the differential test of whole runs, and what it proves.

`python -m tests.faults.differential --cases 3000` runs thousands of cases.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.differential.expected import RECORD
from tests.faults.differential.plants import PLANTS
from tests.outputs import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="its children are forked")

N_CASES = 24
REPEATED = 11  # has one worker and a kill
# A case of one worker that finds each planted mistake; where the program or the cases have changed
# since, a later one does.
FOUND_BY = {
    "cumulative-sums": 69, "index-not-last": 48, "unchecked-publishing": 38, "unread-ranks": 73,
}  # fmt: skip
# The reference of a differential test shares nothing with what it judges.
INDEPENDENT = (
    "asked", "bits", "damage", "expected", "ranks", "reference", "sources", "tokenizers",
)  # fmt: skip


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run the command here, which saves it its imports; it must pass. Give what it printed."""
    from tests.faults.differential.__main__ import main

    status = main(arguments)
    out, err = capfd.readouterr()
    assert (status, err) == (0, ""), out + err
    return out.splitlines()


def test_whole_runs_end_as_the_reference_says(capfd: pytest.CaptureFixture[str]) -> None:
    (verdict,) = run(capfd, "--cases", str(N_CASES))
    assert verdict.startswith(f"pass  {N_CASES} cases, 0 wrong")
    assert "converted" in verdict
    assert "status -9" in verdict
    assert "x by workers" in verdict


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_mistake_is_found(capfd: pytest.CaptureFixture[str], plant: str) -> None:
    """A mistake that nobody finds proves that the cases are too tame."""
    first, within = str(FOUND_BY[plant]), str(PLANTS[plant].within)
    *story, verdict = run(capfd, "--seed", first, "--cases", within, "--plant", plant)
    assert ", 1 wrong" in verdict
    seed = story[0].removeprefix("case ").partition(":")[0]
    again = f"python -m tests.faults.differential --cases 1 --seed {seed} --plant {plant}"
    assert f"  repeat it: {again}" in story
    (control,) = run(capfd, "--seed", seed, "--cases", "1")
    assert control.startswith("pass  1 cases, 0 wrong")


def test_a_case_follows_from_its_number(tmp_path: Path) -> None:
    """With one worker; several take turns as the system has it."""
    from tests.faults.differential.cases import Case

    stories = []
    for turn in ("once", "again"):
        (tmp_path / turn).mkdir()
        case = Case(REPEATED, tmp_path / turn)
        assert case.problem() is None
        stories.append(case.story)
    assert stories[0] == stories[1]
    assert any("SIGKILL" in line for line in stories[0])
    assert not any("--workers 2" in line or "--workers 3" in line for line in stories[0])


def test_the_reference_does_not_know_the_package() -> None:
    for name in INDEPENDENT:
        tree = ast.parse(
            (ROOT / "tests" / "faults" / "differential" / f"{name}.py").read_text("utf-8")
        )
        imported = [
            alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        assert imported
        assert not [name for name in imported if name.startswith("codellama_convert")]


# --- the reference itself -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Convert a checkpoint, and give the output and what the reference expects."""
    from tests.faults.differential.asked import Asked
    from tests.faults.differential.cases import Case
    from tests.faults.differential.program import run as convert
    from tests.faults.differential.reference import expected

    seed = next(n for n in range(100) if _has_two_ranks_and_a_tokenizer(n, tmp_path_factory))
    case = Case(seed, tmp_path_factory.mktemp("case"))
    case._place().write()
    asked = Asked(shard_bytes=20_000, card=True, sha256=True, variant="chat")
    target = case.folder / "whole"
    ended = convert(list(asked.arguments(case._source, target)), case.folder, None, None)
    assert ended.status == 0, ended.err
    return target, expected(case._on_disk, asked)


def _has_two_ranks_and_a_tokenizer(seed: int, factory: pytest.TempPathFactory) -> bool:
    from tests.faults.differential.cases import Case

    checkpoint = Case(seed, factory.getbasetemp())._on_disk.checkpoint
    return len(checkpoint.ranks) == 2 and checkpoint.tokenizer is not None


def test_the_reference_accepts_a_right_output(whole: tuple[Path, Any]) -> None:
    target, wanted = whole
    assert list(wanted.problems(target)) == []
    assert {path.name for path in target.iterdir()} == wanted.names


def test_the_reference_notices_each_bit_of_a_weight(whole: tuple[Path, Any], tmp_path) -> None:
    target = _copy(whole[0], tmp_path)
    for path in target.glob("*.safetensors"):
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        found = list(whole[1].problems(target))
        assert found[0] == f"{path.name} has other bytes (first at {len(raw) - 1})"
        path.write_bytes(raw)


def _set(*keys: str | int, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", _set("vocab_size", to=float("nan"))),
        ("config.json", _set("rope_theta", to=1)),
        ("config.json", _set("use_cache", to=1)),
        ("config.json", _set("one_more", to=None)),
        ("generation_config.json", _set("eos_token_id", to="2")),
        ("tokenizer.json", _set("model", "merges", 0, to="a b")),
        ("tokenizer.json", _set("added_tokens", 0, "special", to=False)),
        ("tokenizer_config.json", _set("chat_template", to="{{ bos_token }}")),
        ("tokenizer_config.json", _set("legacy", to=True)),
        ("special_tokens_map.json", _set("bos_token", to="<t>")),
        ("model.safetensors.index.json", _set("metadata", "total_size", to=1)),
        ("conversion.json", _set("notes", to=[])),
        ("conversion.json", _set("notes", 0, to="something else")),
        ("conversion.json", _set("model", to="Llama 2 7B")),
        ("conversion.json", _set("source", "consolidated.01.pth", "crc32", to="00000000")),
        ("conversion.json", _set("source", "consolidated.01.pth", "size", to=1)),
        ("conversion.json", _set("tensors", "lm_head.weight", "crc32", to="00000000")),
        ("conversion.json", _set("tensors", "lm_head.weight", "nonfinite", to=0)),
        ("conversion.json", _set("files", "config.json", "crc32", to="00000000")),
        ("conversion.json", _set("files", "config.json", "sha256", to="00")),
        ("conversion.json", _set("options", "variant", to=None)),
    ],
)
def test_the_reference_notices_each_value(whole, tmp_path, name, change) -> None:
    target = _copy(whole[0], tmp_path)
    content = json.loads((target / name).read_text("utf-8"))
    (target / name).write_bytes(_spelled(name, content))
    # The values are the same; but a record has the sums of how the others are spelled.
    found = list(whole[1].problems(target))
    assert [p for p in found if name == RECORD or not p.startswith(RECORD)] == []
    change(content)
    (target / name).write_bytes(_spelled(name, content))
    assert any(problem.startswith(f"{name}: ") for problem in whole[1].problems(target))


def _spelled(name: str, content: Any) -> bytes:
    """Spell a JSON file; the record as a conversion does, with a right sum of itself."""
    if name != RECORD:
        return json.dumps(content).encode()

    def spelled(own: str) -> bytes:
        whole = content | {"crc32": own}
        return (json.dumps(whole, indent=2, sort_keys=True) + "\n").encode()

    return spelled(f"{zlib.crc32(spelled('00000000')):08x}")


def _copy(target: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(target, tmp_path / "copy"))
