"""What the library and the command line refuse of options: one table for every field of both."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from codellama_convert import (
    CodeLlamaTokenizer,
    Options,
    RunOptions,
    convert_checkpoint,
    plan_conversion,
    verify_output,
)
from codellama_convert.arguments import FLAG, check_fields
from codellama_convert.cli.commands import main
from codellama_convert.convert.run import run
from codellama_convert.errors import ConfigError
from codellama_convert.model.asked import Asked
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype, as_dtype, dtype_named
from tests.witness.checkpoints import GQA, save_checkpoint

# A dtype that nobody else knows: its code is of safetensors, its name is not.
FOREIGN = Dtype("F16", "float12", "fp12", "X", 2, 1.0, 0.1, 0x7C00)
NO_FLAGS: list[Any] = [1, 0, None, "True", "no", []]
NO_FUNCTIONS: list[Any] = [1, "print", True, []]
NO_PATHS: list[Any] = [
    b"tokenizer.model", bytearray(b"x"), 7, True, "", "a\0b", "\ud800", ["tokenizer.model"],
]  # fmt: skip
NO_SIZES: list[Any] = [0, -1, 1.0, 5e9, True, False, "5GB", "1", b"1", 1 << 63, 10**5000]
NO_FACTORS: list[Any] = [0, 0.5, -8, "8", True, float("nan"), float("inf"), 1025]

# For every field: values that are refused, and neighbours of them that are taken.
OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "model_size": (["9B", "7b", "", 7, True, b"7B"], [None, "7B", "70Bf", "tokenizer_only"]),
    "flavor": (["xyz", "Instruct", "", 1], [None, "base", "python", "instruct", "chat", "guard"]),
    "dtype": (
        ["int8", "auto", "", b"float16", 16, float, Path("float16"), FOREIGN, torch.float64,
         torch.int8, ["float16"]],
        [None, "float16", "BF16", "half", "fp32", "torch.float16", torch.float16, torch.bfloat16,
         FLOAT32],
    ),
    "max_shard_bytes": ([None, *NO_SIZES], [1, (1 << 63) - 1]),
    "max_position_embeddings": (
        [-5, 0, "4096", True, 1e4, 4096.0, 1 << 31], [None, 1, 4096, (1 << 31) - 1],
    ),
    "rope_scaling_factor": (NO_FACTORS, [None, 1, 8.0, 32, 1024.0]),
    "tokenizer_model": (NO_PATHS, [None, "a", Path("a"), os.fsdecode(b"\xff")]),
    "skip_tokenizer": (NO_FLAGS, [True, False]),
    "tokenizer_class": (["xyz", "", 1, "llamatokenizer"], [None, "LlamaTokenizer"]),
    "io_mode": (["xyz", None, "", "AUTO", 1], ["auto", "direct", "buffered"]),
    "workers": ([1.5, True, False, 0, -1, 257, "2", 10**5000], [None, 1, 256]),
    "max_ram_bytes": (NO_SIZES, [None, 1]),
    "checksums": (["xyz", None, "", False], ["off", "warn", "strict"]),
    "tile_bytes": (NO_SIZES, [None, 1]),
}  # fmt: skip
RUN_OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "overwrite": (NO_FLAGS, [True, False]),
    "restart": (NO_FLAGS, [True, False]),
    "sha256": (NO_FLAGS, [True, False]),
    "model_card": (NO_FLAGS, [True, False]),
    "check_source": (NO_FUNCTIONS, [None, print]),
    "check_staged": (NO_FUNCTIONS, [None, print]),
}
ASKED: dict[str, tuple[list[Any], list[Any]]] = {
    "dtype": (["int8", "half", 16, FLOAT32], [None, "float16"]),
    "max_position_embeddings": ([-5, 0, True, 1 << 31], [None, 1, (1 << 31) - 1]),
    "max_shard_size": (NO_SIZES, [None, 1, (1 << 63) - 1]),
    "rope_scaling_factor": (NO_FACTORS, [None, 1, 8.0]),
    "skip_tokenizer": ([1, "True", []], [None, True, False]),
    "tokenizer_class": (["xyz", 1, []], [None, "LlamaTokenizer"]),
    "variant": (["xyz", "Instruct", 1, []], [None, "chat"]),
}
TABLES = ((Options, OPTIONS), (RunOptions, RUN_OPTIONS), (Asked, ASKED))
REFUSED = [(kind, n, v) for kind, table in TABLES for n, (wrong, _) in table.items() for v in wrong]
TAKEN = [(kind, n, v) for kind, table in TABLES for n, (_, right) in table.items() for v in right]


@pytest.mark.parametrize(("kind", "table"), TABLES)
def test_every_field_has_values_that_are_refused_and_values_that_are_taken(kind, table):
    assert set(table) == {field.name for field in fields(kind)}
    assert all(wrong and right for wrong, right in table.values())


@pytest.mark.parametrize(("kind", "name", "wrong"), REFUSED, ids=itertools.count())
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(kind, name, wrong):
    """Some were written as they are, some ended in a TypeError or an AttributeError."""
    with pytest.raises(ConfigError) as caught:
        kind(**{name: wrong})
    said = str(caught.value)
    value = "a huge int" if wrong == 10**5000 else repr(wrong)
    assert said.startswith(f"{name} is {value}"[:60].replace("\0", r"\x00"))
    assert "; it must be " in said
    assert len(said) < 300


@pytest.mark.parametrize(("kind", "name", "right"), TAKEN)
def test_a_right_value_is_taken_as_it_is(kind, name, right):
    assert getattr(kind(**{name: right}), name) is right


def test_a_field_without_a_rule_is_found():
    @dataclass(frozen=True)
    class Growing:
        old: bool = False
        new: int = 0

    with pytest.raises(KeyError, match="new"):
        check_fields(Growing(), {"old": FLAG})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"skip_tokenizer": True, "tokenizer_model": "x"}, ("skip_tokenizer", "tokenizer_model")),
        (
            {"skip_tokenizer": True, "tokenizer_class": "LlamaTokenizer"},
            ("skip_tokenizer", "tokenizer_class"),
        ),
        (
            {"skip_tokenizer": True, "model_size": "tokenizer_only"},
            ("skip_tokenizer", "tokenizer_only"),
        ),
        ({"model_size": "tokenizer_only", "dtype": "half"}, ("tokenizer_only", "dtype")),
        ({"tile_bytes": 9, "max_ram_bytes": 9}, ("tile_bytes", "max_ram_bytes")),
    ],
)
def test_the_library_refuses_contradictions_too(options, named):
    """One of the two was ignored in silence."""
    with pytest.raises(ConfigError, match="contradict each other") as caught:
        Options(**options)
    assert all(name in str(caught.value) for name in named)
    for name, value in options.items():
        Options(**{name: value})


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("float16", FLOAT16),
        (torch.float16, FLOAT16),
        (torch.bfloat16, BFLOAT16),
        (FLOAT32, FLOAT32),
    ],
)
def test_torch_names_a_dtype_too(value, dtype):
    assert as_dtype(value) is dtype


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("options") / "in", GQA)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, dtype_named("half")])
def test_every_spelling_of_a_dtype_is_converted_to_and_verified(checkpoint, tmp_path, dtype):
    options = Options(dtype=dtype, tokenizer_model=str(checkpoint / "tokenizer.model"))
    assert convert_checkpoint(checkpoint, tmp_path / "out", options=options).cast is not None
    assert b'"torch_dtype": "float16"' in (tmp_path / "out" / "config.json").read_bytes()
    assert verify_output(tmp_path / "out", plan_conversion(checkpoint, options)).problems == ()
    other = plan_conversion(checkpoint, Options(dtype=torch.float32))
    assert verify_output(tmp_path / "out", other).problems != ()


def test_a_dtype_of_torch_is_looked_up_without_torch():
    code = (
        "import sys\n"
        "from codellama_convert import Options\n"
        "Options(dtype='torch.float16')\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Place:
    """A path that is neither str nor Path."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __fspath__(self) -> Any:
        return self._path


@pytest.mark.parametrize("spell", [str, Path, lambda path: Place(str(path))])
def test_every_path_is_a_text_or_path_like(checkpoint, tmp_path, spell):
    source, target = spell(checkpoint), spell(tmp_path / "out")
    tokenizer = spell(checkpoint / "tokenizer.model")
    options = Options(tokenizer_model=tokenizer)
    assert convert_checkpoint(source, target, options=options).output_dir == tmp_path / "out"
    job = plan_conversion(source, options)
    assert verify_output(target, job).problems == ()
    run(job, target, RunOptions(overwrite=True))
    found = CodeLlamaTokenizer.from_pretrained(target)
    assert found.encode("a") == CodeLlamaTokenizer.from_pretrained(tokenizer).encode("a")
    (copy,) = found.save_vocabulary(target, "copy")
    assert copy == str(tmp_path / "out" / "copy-tokenizer.model")


@pytest.mark.parametrize("wrong", [*NO_PATHS, None, Place(b"x"), Place("")])
def test_what_is_no_path_is_refused_with_its_name(checkpoint, tmp_path, wrong):
    """Bytes ended in a TypeError, and "" was the current folder."""
    job = plan_conversion(checkpoint, Options())
    tokenizer = CodeLlamaTokenizer.from_pretrained(checkpoint)
    for name, call in (
        ("input_dir", lambda: plan_conversion(wrong, Options())),
        ("input_dir", lambda: convert_checkpoint(wrong, tmp_path / "out")),
        ("output_dir", lambda: convert_checkpoint(checkpoint, wrong)),
        ("output_dir", lambda: run(job, wrong)),
        ("output_dir", lambda: verify_output(wrong)),
        ("pretrained_path", lambda: CodeLlamaTokenizer.from_pretrained(wrong)),
        ("save_directory", lambda: tokenizer.save_vocabulary(wrong)),
    ):
        with pytest.raises(ConfigError, match=f"^{name} is .*; it must be a path"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{}, 1, "x"])
def test_an_object_of_another_kind_is_refused_by_its_argument(checkpoint, tmp_path, wrong):
    job, target = plan_conversion(checkpoint, Options()), tmp_path / "out"
    for name, call in (
        ("options", lambda: plan_conversion(checkpoint, wrong)),
        ("options", lambda: convert_checkpoint(checkpoint, target, options=wrong)),
        ("run_options", lambda: convert_checkpoint(checkpoint, target, run_options=wrong)),
        ("run_options", lambda: run(job, target, wrong)),
        ("job", lambda: run(wrong, target)),
        ("job", lambda: verify_output(tmp_path, wrong)),
        ("asked", lambda: verify_output(tmp_path, asked=wrong)),
        ("watch", lambda: run(job, target, watch=wrong)),
        ("progress", lambda: convert_checkpoint(checkpoint, target, progress=wrong)),
        ("progress", lambda: verify_output(tmp_path, progress=wrong)),
    ):
        with pytest.raises(ConfigError, match=f"^{name} is "):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_no_model_is_refused(checkpoint, tmp_path):
    """The library ignored it."""
    card, alone = RunOptions(model_card=True), Options(model_size="tokenizer_only")
    for call in (
        lambda: convert_checkpoint(checkpoint, tmp_path / "x", options=alone, run_options=card),
        lambda: run(plan_conversion(checkpoint, alone), tmp_path / "x", card),
    ):
        with pytest.raises(ConfigError, match="tokenizer_only and model_card contradict"):
            call()
    assert not (tmp_path / "x").exists()
    assert run(plan_conversion(checkpoint, alone), tmp_path / "alone").files
    assert (
        "README.md" in run(plan_conversion(checkpoint, Options()), tmp_path / "model", card).files
    )


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("--max_position_embeddings", "2147483648"), "from 1 to 2147483647"),
        (("--max_shard_size", "10000000TB"), "from 1 to 2**63 - 1"),
        (("--max_ram", "1" + 400 * "0" + ".5GB"), "is not a size"),
        (("--max_shard_size", "5"), "5 bytes? write 5GB, 5MB or 5B"),
        (("--max_ram", "64"), "64 bytes? write 64GB, 64MB or 64B"),
        (("--workers", "257"), "1<=x<=256"),
        (("--output_dir", ""), "the name is empty"),
        (("--tokenizer_model", ""), "the name is empty"),
        (("--model_size", "tokenizer_only", "--dtype", "half"), "contradict each other"),
    ],
)
def test_the_command_line_refuses_what_the_library_refuses(checkpoint, arguments, fact):
    """An empty name was the current folder; a size of 400 digits ended in a traceback."""
    result = CliRunner().invoke(main, ["plan", "--input_dir", str(checkpoint), *arguments])
    assert result.exit_code == 2, result.output
    assert fact in result.stderr


def test_the_command_line_calls_a_card_of_no_model_a_wrong_use(checkpoint, tmp_path):
    arguments = ["--input_dir", str(checkpoint), "--output_dir", str(tmp_path / "out")]
    wrong = [*arguments, "--model_size", "tokenizer_only", "--model_card"]
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 2
    assert "contradict each other" in result.stderr
    assert CliRunner().invoke(main, wrong[:-1]).exit_code == 0
