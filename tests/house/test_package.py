"""The package as it is shipped: its metadata, its content, and what CI is told to do."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import codellama_convert
from tests.house import package
from tests.programs import BIN, needs_commands, path_with

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs git and its clone"
)


def test_the_version_is_the_same_everywhere():
    version = codellama_convert.__version__
    assert f'\nversion = "{version}"\n' in PYPROJECT
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_citation_names_the_paper_and_all_its_authors():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["title"] == "Code Llama: Open Foundation Models for Code"
    assert len(paper["authors"]) == 25
    assert paper["authors"][0] == {"given-names": "Baptiste", "family-names": "Rozière"}
    assert paper["authors"][-1] == {"given-names": "Gabriel", "family-names": "Synnaeve"}


def test_mutation_names_modules_and_tests_that_are_there():
    """Modules moved; mutmut passes over a path that leads nowhere without a word."""
    table = PYPROJECT[PYPROJECT.index("[tool.mutmut]") :]
    paths = re.findall(r'"((?:codellama_convert|tests)/[^"]+\.py)"', table)
    assert {path.partition("/")[0] for path in paths} == {"codellama_convert", "tests"}
    assert [path for path in paths if not (ROOT / path).exists()] == []


@needs_git
def test_the_sdist_holds_what_the_repository_holds():
    """What it is told to include; .ci/package looks at a built one."""
    table = PYPROJECT[PYPROJECT.index("[tool.hatch.build.targets.sdist]") :]
    included = set(re.findall(r'"/([^"]+)"', table[: table.index("\n]")]))
    tracked = {name.partition("/")[0] for name in package.tracked()}
    assert tracked - included == {".gitignore", "pyproject.toml"}, "hatchling adds these two"
    assert included <= tracked


@needs_git
@pytest.mark.parametrize(
    ("added", "left_out", "complaint"),
    [
        ((), (), None),
        ((), ("py.typed",), "codellama_convert/py.typed is missing"),
        (("tests/cli/test_commands.py",), (), "tests/cli/test_commands.py does not belong in it"),
        (("examples/infill.py",), (), "examples/infill.py does not belong in it"),
    ],
)
def test_a_wheel_holds_the_package_and_nothing_else(tmp_path, added, left_out, complaint):
    path = tmp_path / "codellama_convert-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("codellama_convert-0.1.0.dist-info/METADATA", "")
        for name in {*(n for n in package.tracked() if n.startswith("codellama_convert/")), *added}:
            if Path(name).name not in left_out:
                wheel.writestr(name, "")
    expected = [] if complaint is None else [f"{path.name}: {complaint}"]
    assert package.complaints(path) == expected


def test_a_user_installs_every_dependency_but_torch():
    names = [re.split("=", line)[0] for line in package.dependencies()]
    assert names == ["click", "numpy", "safetensors", "sentencepiece", "tqdm"]


def test_an_engine_is_an_extra_and_the_suite_has_it():
    """`pip install .` brings none: the core takes any executor, and imports no engine."""
    (extra,) = re.findall(r"^dask = (\[.*\])$", PYPROJECT, re.MULTILINE)
    (needed,) = ast.literal_eval(extra)
    assert re.fullmatch(r"distributed>=[0-9.]+", needed)
    test_group = PYPROJECT[PYPROJECT.index("\ntest = [") :]
    assert f'"{needed}",' in test_group[: test_group.index("\n]")]
    dependencies = PYPROJECT[PYPROJECT.index("\ndependencies = [") :]
    assert "distributed" not in dependencies[: dependencies.index("\n]")]


def test_ci_runs_the_scripts_of_a_maintainer_on_all_that_the_metadata_promise():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    jobs = workflow["jobs"]
    matrix = jobs["check"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    promised = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    assert matrix["python"] == promised
    assert f'requires-python = ">={promised[0]}"' in PYPROJECT
    commands = {step.get("run") for job in jobs.values() for step in job["steps"]}
    assert "pip install . && bash .ci/try" in commands
    assert {"bash .ci/run", "bash .ci/package", "bash examples/quickstart.sh"} <= commands
    for command in commands - {None}:
        for script in re.findall(r"bash (\S+)", command):
            assert (ROOT / script).exists(), script
    # Both versions of transformers: tests/run.sh, which .ci/run runs, makes an environment of each.
    for number, version in ((4, "4.57."), (5, "5.")):
        pins = (ROOT / f"tests/constraints-transformers{number}.txt").read_text(encoding="utf-8")
        assert f"\ntransformers=={version}" in pins


PYTHON_NAMES = {f"python3.{minor}" for minor in range(10, 15)}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
_PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def loose_ends(workflow: str) -> list[str]:
    """Name what a workflow takes from others or hands out, and should not."""
    import yaml

    uses = re.findall(r"^[ -]*uses: *(.*?) *$", workflow, re.MULTILINE)
    found = [f"{action} is not a commit with its version" for action in uses
             if not _PINNED.fullmatch(action)]  # fmt: skip
    names = [action.partition("@")[0] for action in set(uses) if _PINNED.fullmatch(action)]
    found += [
        f"{name} is pinned to several commits" for name in set(names) if names.count(name) > 1
    ]
    content = yaml.safe_load(workflow)
    if content.get("permissions") != {"contents": "read"}:
        found.append("the token may do more than read")
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    assert sum("uses" in step for step in steps) == len(uses)
    for step in steps:
        is_checkout = step.get("uses", "").startswith("actions/checkout@")
        if is_checkout and step.get("with", {}).get("persist-credentials") is not False:
            found.append("a checkout leaves the token in .git/config")
    return found + ["a job takes other permissions" for job in content["jobs"].values()
                    if "permissions" in job]  # fmt: skip


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_was_reviewed_and_hands_out_nothing(path):
    """Actions went by tags, which their owners, and those who rob them, can move to other code."""
    assert loose_ends(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        (r"@[0-9a-f]{40} # v", "@v", "is not a commit"),
        (r"(@[0-9a-f]{39})[0-9a-f]", r"\1", "is not a commit"),
        (r" # v6\.0\.2", "", "is not a commit"),
        (r"(checkout@[0-9a-f]{39})[0-9a-f]", r"\g<1>0", "is pinned to several commits"),
        (r"persist-credentials: false", "persist-credentials: true", "leaves the token"),
        (r"persist-credentials: false", "fetch-depth: 1", "leaves the token"),
        (r"contents: read", "contents: write", "may do more"),
        (r"permissions:\n  contents: read\n", "", "may do more"),
        (r"    timeout-minutes: 60", "    permissions: write-all", "takes other permissions"),
    ],
)
def test_a_workflow_with_a_loose_end_is_found(was, becomes, complaint):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    spoiled, n_changes = re.subn(was, becomes, text, count=1)
    assert n_changes == 1
    (found,) = loose_ends(spoiled)
    assert complaint in found


def test_hooks_before_a_commit_are_versions_and_those_of_the_suite():
    import yaml

    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"].rpartition("/")[2]: repo.get("rev") for repo in hooks["repos"]}
    assert revisions.pop("local") is None
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", rev) for rev in revisions.values()), revisions
    pins = (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nruff=={revisions['ruff-pre-commit'][1:]}\n" in pins
    assert f"\ncodespell=={revisions['codespell'][1:]}\n" in pins


@needs_commands
@pytest.mark.parametrize(("program", "status"), [("codellama-convert", 0), ("false", 1)])
def test_ci_converts_and_verifies_with_what_is_on_the_path(tmp_path, program, status):
    (tmp_path / "codellama-convert").symlink_to(shutil.which(program, path=f"{BIN}:{os.defpath}"))
    before = set((ROOT / "examples").iterdir())
    done = subprocess.run(
        ["bash", str(ROOT / ".ci/try")], check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": path_with(tmp_path)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    for verdict in ("equals the checkpoint", "equals conversion.json"):
        assert (verdict in done.stdout) is (program != "false")
    assert set((ROOT / "examples").iterdir()) == before


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "script", sorted(p for p in (*(ROOT / ".ci").iterdir(), *ROOT.glob("*/*.sh")) if p.is_file())
)
def test_every_script_is_bash_without_a_slip(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


@needs_commands
@pytest.mark.parametrize("chosen", [None, "python3.99"])
def test_the_package_is_tried_with_each_python_that_works(tmp_path, chosen):
    """Only the first was; pyenv puts names on PATH that lead nowhere, and keeps others elsewhere."""
    here = f"python3.{sys.version_info[1]}"
    (tmp_path / here).symlink_to(sys.executable)
    (tmp_path / "python3.99").symlink_to(sys.executable)
    (tmp_path / "python").symlink_to(sys.executable)
    elsewhere = tmp_path / "root" / "versions" / "3.99.1" / "bin"
    elsewhere.mkdir(parents=True)
    (elsewhere / "python").symlink_to(sys.executable)
    scripts = {
        "pyenv": f"echo {tmp_path}/root",
        **dict.fromkeys(PYTHON_NAMES - {here}, "exit 127"),
    }
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash"), "-c", "source tests/environment.sh; find_pythons"], check=True,
        capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={"PATH": str(tmp_path), **({} if chosen is None else {"PYTHON": chosen})},
    )  # fmt: skip
    assert done.stdout.split() == [here if chosen is None else chosen], done.stderr
