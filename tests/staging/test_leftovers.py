"""What an older model leaves in its folder changes what transformers loads, until it is replaced."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from codellama_convert.convert.run import RunOptions, convert_checkpoint
from codellama_convert.errors import OutputError
from codellama_convert.plan.options import Options
from tests.witness.tiny import TINY

V4 = transformers.__version__.startswith("4.")


def _quietly(load: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load()


def _templates(folder: Path) -> object:
    return _quietly(lambda: transformers.AutoTokenizer.from_pretrained(folder)).chat_template


def _ids(folder: Path) -> object:
    return _quietly(lambda: transformers.AutoTokenizer.from_pretrained(folder))("a xyzzy")[
        "input_ids"
    ]


def _processor(folder: Path) -> object:
    try:
        return type(_quietly(lambda: transformers.AutoProcessor.from_pretrained(folder))).__name__
    except ValueError:  # it wants an image processor that the folder does not have
        return "nothing"


def _norm(folder: Path, **options: object) -> object:
    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        model = _quietly(lambda: load(folder, dtype="auto", **options))
    except OSError:
        return "nothing"
    return model.model.norm.weight.tolist()


def _generate(folder: Path) -> object:
    load = transformers.AutoModelForCausalLM.from_pretrained
    return type(_quietly(lambda: load(folder, dtype="auto")).generate).__name__


def _put(name: str, text: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return put


def _older_weights(**how: Any) -> Callable[[Path], None]:
    """Let transformers save another model there, and put everything else back."""

    def put(folder: Path) -> None:
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        model = _quietly(lambda: transformers.AutoModelForCausalLM.from_pretrained(folder))
        torch.nn.init.zeros_(model.model.norm.weight)
        model.save_pretrained(folder, **how)
        for path, content in kept.items():
            path.write_bytes(content)

    return put


def _older_bin(folder: Path) -> None:
    model = _quietly(lambda: transformers.AutoModelForCausalLM.from_pretrained(folder))
    state = model.state_dict()
    state["model.norm.weight"] = torch.zeros_like(state["model.norm.weight"])
    torch.save(state, folder / "pytorch_model.bin")


LEFTOVERS = {
    "chat_template.jinja": (_put("chat_template.jinja", "old"), _templates),
    "additional_chat_templates": (_put("additional_chat_templates/old.jinja", "old"), _templates),
    "added_tokens.json": (_put("added_tokens.json", '{"xyzzy": 640}'), _ids),
    "preprocessor_config.json": (
        _put("preprocessor_config.json", '{"processor_class": "LlavaProcessor"}'),
        _processor,
    ),
    "model.fp16.safetensors": (
        _older_weights(variant="fp16"),
        lambda folder: _norm(folder, variant="fp16"),
    ),
    "pytorch_model.bin": (_older_bin, lambda folder: _norm(folder, use_safetensors=False)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert_checkpoint(TINY, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("name", LEFTOVERS)
def test_a_leftover_changes_what_is_loaded_and_is_gone_once_the_model_is_replaced(
    folder: Path, name: str
) -> None:
    put, load = LEFTOVERS[name]
    before = load(folder)
    put(folder)
    assert (folder / name).exists()
    assert load(folder) != before
    convert_checkpoint(TINY, folder, run_options=RunOptions(overwrite=True))
    assert not (folder / name).exists()
    assert load(folder) == before


def test_an_older_single_file_is_taken_before_the_index_and_goes(tmp_path: Path) -> None:
    folder, sharded = tmp_path / "hf", Options(max_shard_bytes=300_000)
    convert_checkpoint(TINY, folder, options=sharded)
    before = _norm(folder)
    _older_weights()(folder)
    assert (folder / "model.safetensors.index.json").exists()
    assert _norm(folder) != before
    convert_checkpoint(TINY, folder, options=sharded, run_options=RunOptions(overwrite=True))
    assert not (folder / "model.safetensors").exists()
    assert _norm(folder) == before


@pytest.mark.skipif(not V4, reason="transformers 5 asks for trust_remote_code first")
def test_code_that_transformers_4_runs_from_the_folder_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flag is asked for: loading a model imports custom_generate/generate.py beside it."""
    # The code is copied into a cache on sys.path, which is the user's own otherwise.
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = _generate(folder)
    _put("custom_generate/generate.py", "def generate(model, *_, **__):\n    return 1\n")(folder)
    assert _generate(folder) != before
    assert list((tmp_path / "cache").rglob("generate.py"))
    with pytest.raises(OutputError, match="custom_generate"):
        convert_checkpoint(TINY, folder, run_options=RunOptions(overwrite=True))
    assert (folder / "custom_generate" / "generate.py").exists()
    shutil.rmtree(folder / "custom_generate")
    convert_checkpoint(TINY, folder, run_options=RunOptions(overwrite=True))
    assert _generate(folder) == before
