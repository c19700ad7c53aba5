"""Two ranks that changed places make a wrong model; where the zips say so, it is noted."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from codellama_convert import Options, plan_conversion
from codellama_convert.cli.commands import main
from tests.faults.hostile.rank_bytes import RANK, SECOND
from tests.witness.checkpoints import GQA, save_checkpoint

WRONG = f"{RANK} and 1 more: saved as consolidated.01.pth and renamed; if ranks were swapped"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("renamed") / "in", GQA, n_ranks=2)


@pytest.fixture
def source(right, tmp_path):
    return Path(shutil.copytree(right, tmp_path / "in"))


def swap(source: Path) -> None:
    (source / RANK).rename(source / "kept")
    (source / SECOND).rename(source / RANK)
    (source / "kept").rename(source / SECOND)


def with_root(path: Path, root: str) -> None:
    """Write a rank again as one that was saved under another name."""
    with zipfile.ZipFile(path) as old:
        records = [(name.partition("/")[2], old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records:
            new.writestr(f"{root}/{name}", content)


def test_ranks_in_each_others_place_are_noted_by_both_commands(source, tmp_path):
    """They were converted, and verified, without a word."""
    swap(source)
    both = ["--input_dir", str(source), "--output_dir", str(tmp_path / "out")]
    for command in ("convert", "verify"):
        done = CliRunner().invoke(main, [command, *both])
        assert done.exit_code == 0, done.output
        assert sum(line.startswith(f"note: {WRONG}") for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("roots", "noted"),
    [
        (("consolidated.00", "consolidated.01"), False),
        (("consolidated.01", "consolidated.00"), True),
        (("consolidated", "consolidated"), False),
        (("archive", "archive"), False),
        (("consolidated.00", "consolidated.00"), False),
        (("consolidated.00", "consolidated"), False),
        (("consolidated.01", "consolidated"), True),
        (("first", "second"), False),
    ],
)
def test_a_root_tells_only_where_it_is_another_ranks(source, roots, noted):
    """Saved one by one under one name, or into a buffer, all have the same root."""
    for name, root in zip((RANK, SECOND), roots, strict=True):
        with_root(source / name, root)
    notes = plan_conversion(source, Options()).notes
    assert any("and renamed" in note for note in notes) is noted


def test_a_single_rank_may_be_called_as_it_is(tmp_path):
    source = save_checkpoint(tmp_path / "in", GQA)
    with_root(source / RANK, "consolidated.03")
    assert not any("renamed" in note for note in plan_conversion(source, Options()).notes)
