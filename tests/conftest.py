"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from codellama_convert.formats.sentencepiece import SentencePieceModel, read_sentencepiece_model
from codellama_convert.storage.signals import STOP_SIGNALS
from codellama_convert.tokenizer.hf_files import DEFAULT_TOKENIZER_CLASS, tokenizer_files
from tests.process_state import begin_random_numbers, process_state, torch_state
from tests.witness.vocabularies import model_bytes, write_folder, write_model

# For mutation testing: a mutant is killed by any example, and by the same one in every run.
hypothesis.settings.register_profile(
    "first_failure",
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    derandomize=True,
    database=None,
)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that changes what a later one in this process may depend on."""
    begin_random_numbers()
    before = process_state()
    yield
    # The test may be the first that imports torch.
    assert process_state() == {**torch_state(), **before}


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill is the same there, and fsync costs nothing."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SentencePieceModel]:
    """Read a model of tests/witness/vocabularies.py by name, once a session."""

    @cache
    def read(name: str) -> SentencePieceModel:
        folder = tmp_path_factory.mktemp(f"model_{name}")
        return read_sentencepiece_model(write_model(folder, model_bytes(name)))

    return read


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, model_of: Any) -> Callable[..., Path]:
    """Write a converted folder, with the given options of `tokenizer_files`, once a session."""

    @cache
    def write(
        name: str, flavor: Any = None, tokenizer_class: str = DEFAULT_TOKENIZER_CLASS
    ) -> Path:
        files = tokenizer_files(model_of(name), flavor=flavor, tokenizer_class=tokenizer_class)
        return write_folder(tmp_path_factory.mktemp(f"folder_{name}"), files)

    return write


@pytest.fixture(scope="session")
def auto_of(folder_of: Any) -> Callable[..., Any]:
    """Load a converted folder through AutoTokenizer, once a session."""

    @cache
    def load(name: str, flavor: Any = None, tokenizer_class: str = DEFAULT_TOKENIZER_CLASS) -> Any:
        with warnings.catch_warnings():
            # transformers 4.57 and its libraries import deprecated names of each other.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(folder_of(name, flavor, tokenizer_class))

    return load


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the trained Code Llama of examples/, once a session."""
    from tests.witness.tiny import TINY, convert  # torch, for which most modules have no use

    return convert(TINY, tmp_path_factory.mktemp("tiny") / "hf")


@pytest.fixture(scope="module")
def training() -> Iterator[Any]:
    """Import the training script the way it runs: with examples/ on the path, on one thread."""
    import torch

    from tests.witness.tiny import EXAMPLES

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("tests.witness.tiny_codellama.train")
    torch.set_num_threads(threads)


# Modules whose every test meets transformers: they run once more with version 4.
MEETS_TRANSFORMERS = {
    "test_chat_templates", "test_infilling", "test_leftovers", "test_hf_files", "test_ids",
    "test_llama3_ids",
    "test_readme", "test_special_ids", "test_tiny_controls", "test_tiny_conversion", "test_tiny_infill", "test_tiny_pipeline",
    "test_tokenizer_json", "test_transformers_loaders", "test_transformers_methods",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them; a marker on each test would be forgotten on the next one."""
    for item in items:
        if item.path.stem in MEETS_TRANSFORMERS:
            item.add_marker(pytest.mark.transformers)


def pytest_configure() -> None:
    """Take back signals that the caller ignores, as a shell's background job does.

    The program leaves them ignored, as it should; the tests of signals send them all the same.
    """
    for name in STOP_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


_PRIVILEGE_NOT_HELD = 1314  # winerror.h


@contextmanager
def links_or_skip() -> Iterator[None]:
    """Skip a test that makes a symbolic link where Windows keeps that to administrators."""
    try:
        yield
    except OSError as problem:
        if getattr(problem, "winerror", None) == _PRIVILEGE_NOT_HELD:
            pytest.skip("symbolic links need a privilege here")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    """Let fixtures make links, or skip the test."""
    with links_or_skip():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Let the test make links, or skip it."""
    with links_or_skip():
        return (yield)
