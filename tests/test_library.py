"""The library as a script calls it: what the command line would refuse, it refuses too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codellama_convert import (
    Options,
    RunOptions,
    convert_checkpoint,
    dtype_named,
    plan_conversion,
    verify_output,
)
from codellama_convert.errors import ConfigError, ConvertError
from tests.checkpoints import GQA, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("library") / "in", GQA)


@pytest.mark.parametrize(
    ("name", "wrong", "hint"),
    [
        ("model_size", "9B", "'7B'"),
        ("model_size", "7b", "'7B'"),
        ("flavor", "xyz", "'instruct'"),
        ("dtype", "float16", "dtype_named('float16')"),
        ("io_mode", "xyz", "'buffered'"),
        ("checksums", "xyz", "'strict'"),
        ("tokenizer_class", "xyz", "LlamaTokenizer"),
    ],
)
def test_a_value_that_is_none_is_named_beside_those_that_are(
    checkpoint: Path, tmp_path: Path, name: str, wrong: Any, hint: str
) -> None:
    """They were an AttributeError, a KeyError, or taken."""
    with pytest.raises(ConvertError) as caught:
        convert_checkpoint(checkpoint, tmp_path / "out", options=Options(**{name: wrong}))
    told = str(caught.value)
    assert f"unknown {name} {wrong!r}" in told
    assert hint in told
    assert not (tmp_path / "out").exists()


def test_a_tile_of_nothing_is_refused_by_its_own_name(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tile_bytes must be positive, not 0"):
        plan_conversion(checkpoint, Options(tile_bytes=0))


def test_folders_may_be_texts(checkpoint: Path, tmp_path: Path) -> None:
    options = Options(dtype=dtype_named("float16"))
    target = str(tmp_path / "out")
    report = convert_checkpoint(str(checkpoint), target, options=options)
    assert report.output_dir == tmp_path / "out"
    assert verify_output(target, plan_conversion(str(checkpoint), options)).problems == ()
    assert verify_output(target).problems == ()


def test_overwriting_may_be_asked_for_in_either_place(checkpoint: Path, tmp_path: Path) -> None:
    """Beside run options it was passed over."""
    for _ in range(2):
        convert_checkpoint(
            checkpoint, tmp_path / "out", run_options=RunOptions(sha256=True), overwrite=True
        )
    convert_checkpoint(checkpoint, tmp_path / "out", run_options=RunOptions(overwrite=True))
    with pytest.raises(ConvertError, match="not empty"):
        convert_checkpoint(checkpoint, tmp_path / "out", run_options=RunOptions(sha256=True))
