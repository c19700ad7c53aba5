"""The benchmark, run as a reader would, on a checkpoint of a few megabytes; no time is asserted."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from tests.examples.running import EXAMPLES, REPOSITORY, needs_linux, script

pytestmark = needs_linux

# Each kind once; what else there is differs by an option, and the line of a refusal names it.
MEASURED = (
    "plan",
    "floor",
    "floor-large",
    "convert",
    "floor-float32",
    "float32",
    "floor-read",
    "verify",
    "cp",
)
MOVING_BYTES = MEASURED[1:]


def of_tiny(folder: Path, *options: object) -> tuple[object, ...]:
    return ("--size=tiny", "--rounds=1", "--work_dir", folder / "work",
            "--json", folder / "results.json", *options)  # fmt: skip


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    shutil.copy(EXAMPLES / "README.md", folder)
    only = ("--series=disk", "--only", ",".join(MEASURED))
    done = script(
        "benchmark.py", *of_tiny(folder, *only, "--keep", "--readme", folder / "README.md")
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_results_name_every_run_and_show_no_temporary_disk(measured):
    folder, table = measured
    series = results_of(folder)["series"]["disk"]
    assert series["bytes"] > 10_000_000
    assert (series["layers"], series["all_layers"], series["ranks"]) == (2, 2, 2)
    runs = {run["case"]: run for run in series["runs"]}
    assert tuple(series["cases"]) == tuple(runs) == MEASURED
    for name, run in runs.items():
        assert series["cases"][name]["title"] in table
        assert run["seconds"] > 0
        # A plain copy of a tiny checkpoint may end before the kernel has counted its pages.
        is_tool = name in ("plan", "convert", "float32", "verify")
        assert run["peak_rss_bytes"] > (1_000_000 if is_tool else 0)
        # A run's journal is a few kB; a second copy of any tensor would be a megabyte.
        assert run["temporary_bytes"] < 65_536
    assert runs["floor"]["temporary_bytes"] == runs["floor-float32"]["temporary_bytes"] == 0
    assert runs["float32"]["output_bytes"] > 1.9 * runs["convert"]["output_bytes"]
    assert runs["floor-float32"]["output_bytes"] > 1.9 * runs["floor"]["output_bytes"]


def test_the_table_compares_each_run_with_its_own_floor(measured):
    folder, table = measured
    series = results_of(folder)["series"]["disk"]
    seconds = {run["case"]: run["seconds"] for run in series["runs"]}
    floors = {"convert": "floor", "cp": "floor", "floor-large": "floor"}
    floors |= {"float32": "floor-float32", "verify": "floor-read"}
    for name in MOVING_BYTES:
        ratio = seconds[name] / seconds[floors.get(name, name)]
        assert f"| {series['cases'][name]['title']} | {ratio:.2f} | {seconds[name]:.2f} |" in table


def test_the_versions_of_what_matters_are_recorded(measured):
    folder, table = measured
    machine = results_of(folder)["machine"]
    assert set(machine) == {
        "cores", "processor", "machine", "memory_bytes", "kernel", "versions",
    }  # fmt: skip
    wanted = {"codellama-convert", "Python", "zlib", "numpy", "torch"}
    assert wanted <= set(machine["versions"]) <= wanted | {"zlib-ng"}
    assert machine["versions"]["Python"] == platform.python_version()
    for version in (*machine["versions"].values(), machine["kernel"]):
        assert version in table
    assert results_of(folder)["series"]["disk"]["file_system"] in table


def test_the_results_have_no_paths(measured):
    folder, table = measured
    text = (folder / "results.json").read_text(encoding="utf-8")
    for shown in (text, table):
        assert str(folder) not in shown
        assert sys.prefix not in shown
        assert platform.node() not in shown


def test_the_readme_gets_the_tables_and_the_rest_of_it_stays(measured):
    folder, table = measured
    before = (EXAMPLES / "README.md").read_text(encoding="utf-8").split("<!-- ")
    after = (folder / "README.md").read_text(encoding="utf-8").split("<!-- ")
    assert len(before) == len(after) == 11  # five pairs of marks
    assert before[::2] == after[::2]
    for row in table.splitlines():
        if row.startswith("|"):
            assert row in "".join(after)
    assert sum("Not measured." in region for region in after) == 2  # ram and llama3
    shown = {path.name for path in (folder / "pictures").iterdir()}
    assert shown == {"disk.svg", "memory.svg"}


def test_a_readme_and_pictures_are_made_again_the_same_from_the_results(measured, tmp_path):
    folder, table = measured
    shutil.copy(EXAMPLES / "README.md", tmp_path)
    again = script(
        "benchmark.py", "--from", folder / "results.json", "--readme", tmp_path / "README.md"
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == table
    names = ("README.md", "pictures/disk.svg", "pictures/memory.svg")
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    for name in names[1:]:
        drawn = (tmp_path / name).read_bytes()
        assert b"<svg" in drawn
        assert len(drawn) < 60_000


def test_a_kept_checkpoint_is_used_again_and_other_series_stay(measured, tmp_path):
    folder, _ = measured
    assert [path.name for path in (folder / "work").iterdir()] == ["tiny-2-layers"]
    shutil.copytree(folder / "work", tmp_path / "work")
    shutil.copy(folder / "results.json", tmp_path)
    made = tmp_path / "work" / "tiny-2-layers" / "CodeLlama-tiny" / "params.json"
    (tmp_path / "kept.json").hardlink_to(made)
    again = script("benchmark.py", *of_tiny(tmp_path, "--series=llama3", "--only=floor", "--keep"))
    assert again.returncode == 0, again.stderr
    assert made.samefile(tmp_path / "kept.json")
    assert list(results_of(tmp_path)["series"]) == ["disk", "llama3"]
    gone = script("benchmark.py", *of_tiny(tmp_path, "--series=llama3", "--only=floor"))
    assert gone.returncode == 0, gone.stderr
    assert not (tmp_path / "work").exists()


def test_results_of_another_machine_are_not_mixed_with_these(measured, tmp_path):
    folder, _ = measured
    results = results_of(folder)
    results["machine"]["versions"]["numpy"] = "1.0"
    text = json.dumps(results)
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    refused = script("benchmark.py", *of_tiny(tmp_path, "--series=disk", "--only=floor"))
    assert refused.returncode == 1
    assert "results.json" in refused.stderr
    assert "other versions" in refused.stderr
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == text


def test_pictures_without_matplotlib_are_refused_before_anything_is_measured(
    measured, monkeypatch, tmp_path
):
    """It was found out after all rounds, and without --json they were lost."""
    folder, table = measured
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('none here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "without"), str(REPOSITORY))))
    readme = ("--readme", EXAMPLES / "README.md")
    work = of_tiny(tmp_path, "--series=disk", "--only=floor")
    for wanted in (work, ("--from", folder / "results.json")):
        refused = script("benchmark.py", *wanted, *readme)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert len(refused.stderr.splitlines()) == 1
        assert "pip install matplotlib" in refused.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["without"]
    shown = script("benchmark.py", "--from", folder / "results.json")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == table


def test_a_page_without_marks_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "README.md").write_text("# Measurements\n", encoding="utf-8")
    page = ("--readme", tmp_path / "README.md")
    refused = script("benchmark.py", *of_tiny(tmp_path, "--series=disk", "--only=floor", *page))
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "<!-- machine -->" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_name_that_is_not_known_is_a_usage_error(tmp_path):
    done = script("benchmark.py", *of_tiny(tmp_path, "--only=floor,warp"))
    assert done.returncode == 2
    assert "warp" in done.stderr
    for name in (*MEASURED, "float16", "reverse", "part", "help"):
        assert name in done.stderr
    done = script("benchmark.py", *of_tiny(tmp_path, "--series=disk,tape"))
    assert done.returncode == 2
    for name in ("tape", "ram", "disk", "llama3", "70B", "405B"):
        assert name in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or shutil.disk_usage("/dev/shm").free < 2 << 30,
    reason="needs 2 GB of memory in /dev/shm",
)
def test_the_series_in_memory_is_measured_in_memory_and_leaves_nothing(tmp_path):
    pytest.importorskip("zlib_ng", reason="without the extra [fast] there is no case without it")
    only = "--only=floor,convert,zlib,verify"
    work = f"work-{os.getpid()}"
    done = script(
        "benchmark.py", *of_tiny(tmp_path, "--series=ram", only, "--work_dir", tmp_path / work)
    )
    assert done.returncode == 0, done.stderr
    series = results_of(tmp_path)["series"]["ram"]
    assert series["file_system"] == "tmpfs"
    assert [run["case"] for run in series["runs"]] == ["floor", "convert", "zlib", "verify"]
    assert not Path("/dev/shm", work).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
