"""The READMEs name options that exist, repeat what the program says, and link to each other."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from codellama_convert.cli.commands import main
from tests.house.readme import PAGES, ROOT, blocks, headings, read, regenerated, without_blocks

FRONT, TESTS = "README.md", "tests/README.md"


def test_every_readme_is_looked_at():
    found = {ROOT / "README.md"}
    for folder in ("codellama_convert", "examples", "tests"):
        found.update((ROOT / folder).rglob("README.md"))
    assert {path.relative_to(ROOT).as_posix() for path in found} == set(PAGES)


def test_a_stranger_reads_the_front_page_in_one_sitting():
    text = read(FRONT)
    assert len(text.splitlines()) <= 250
    assert {"bash examples/quickstart.sh\n", "bash tests/run.sh\n"} <= {
        block.text for block in blocks(FRONT)
    }


def test_the_page_about_the_tests_names_what_exists():
    """This suite does not run itself; what its page says to run must be there."""
    text = read(TESTS)
    commands = [block.text for block in blocks(TESTS) if block.language == "bash"]
    assert len(commands) > 2
    named = re.findall(r"(?<![\w/])(?:tests|\.ci)/[\w./]*\w", text)
    assert {"tests/run.sh", ".ci/run"} <= set(named)
    for path in named:
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name
    modules = re.findall(r"-m (tests[.\w]+)", text)
    assert modules
    assert all(find_spec(module) for module in modules), modules


# The options of other programs that the pages name, and what has them.
OF_SCRIPTS = {
    "--file": "examples/infill.py",
    **dict.fromkeys(("--ranks", "--n_kv_heads"), "examples/make_tiny_checkpoint.py"),
    **dict.fromkeys(
        ("--series", "--rounds", "--readme", "--reference_python", "--layers", "--only", "--from"),
        "examples/benchmark/benchmark.py",
    ),
    "--check": "tests/witness/tiny_codellama/train.py",
    "--full": "tests/fuzzers/fuzz.py",
    **dict.fromkeys(("--cases", "--seed"), "tests/faults/differential/__main__.py"),
    "--cov": "pyproject.toml",  # pytest-cov's
}
OF_THE_REFERENCE = {
    "--llama_version", "--num_shards", "--safe_serialization", "--push_to_hub",
    "--special_tokens", "--instruct",
}  # fmt: skip


def test_the_options_that_the_pages_speak_of_exist():
    ours = {o for command in main.commands.values() for p in command.params for o in p.opts}
    text = "".join(map(read, PAGES))
    spoken_of = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text)) - {"--help", "--version"}
    # Of CTranslate2's converter, and of dask's programs.
    of_others = {"--model", "--nthreads", "--protocol", "--scheduler-file"}
    assert spoken_of - set(OF_SCRIPTS) - OF_THE_REFERENCE - of_others - {"--input-dir"} <= ours
    assert not ours & OF_THE_REFERENCE
    assert set(re.findall(r"--[a-z_]+", read(FRONT))) >= OF_THE_REFERENCE
    for option, path in OF_SCRIPTS.items():
        assert option.lstrip("-") in read(path), option


@pytest.mark.parametrize(("page", "names"), [(p, n) for p, n in PAGES.items() if n])
def test_what_the_program_says_is_up_to_date(page, names):
    assert regenerated(read(page), names) == read(page), "run python -m tests.house.readme"


@pytest.mark.parametrize(
    ("page", "true", "outdated"),
    [
        ("codellama_convert/cli/README.md", "Usage: codellama-convert plan", "Usage: codellama-convert plot"),
        (FRONT, "| Code Llama 70B | 8 | 138.0 GB | 32,016 | 16,384 |", "| Code Llama 70B | 8 | 138.0 GB | 32,000 | 4,096 |"),
        (FRONT, "| `--max_shard_size` |", "| `--max_shard_bytes` |"),
        ("codellama_convert/README.md", "vocab_size x hidden_size | columns; rows in Llama 3 |", "vocab_size x hidden_size | rows |"),
    ],
)  # fmt: skip
def test_what_is_outdated_is_regenerated(page, true, outdated):
    text = read(page)
    assert text.count(true) == 1
    assert regenerated(text.replace(true, outdated), PAGES[page]) == text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", without_blocks(read(page))):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in {anchor_of(h) for h in headings(target.read_text("utf-8"))}, link


def anchor_of(heading: str) -> str:
    """Spell a heading as GitHub does in links."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def test_most_links_are_looked_at():
    text = read(FRONT)
    assert len(re.findall(r"\]\((?!https?:)", text)) > 10
    assert anchor_of("The dtype of the files") == "the-dtype-of-the-files"
