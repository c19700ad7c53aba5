"""A folder of pytorch_model.bin is opened by the reader that runs nothing, or refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert.errors import CheckpointError, LayoutError
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.hugging_face.folder import HuggingFaceCheckpoint, open_folder
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.watch import Watch
from tests.hugging_face.folders import (
    EMBEDDING,
    HEAD,
    THETA,
    config,
    names_in,
    write_folder,
)
from tests.refusals import refused
from tests.witness.checkpoints import State

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
MASK = "model.layers.0.self_attn.masked_bias"


def write(
    folder: Path, files: Sequence[Mapping[str, Any]], *, index: bool = False, **change: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**change)), encoding="utf-8")
    n = len(files)
    names = (
        [SINGLE] if n == 1 else [f"pytorch_model-{i:05d}-of-{n:05d}.bin" for i in range(1, n + 1)]
    )
    for name, held in zip(names, files, strict=True):
        torch.save(dict(held), folder / name)
    if index:
        content = {t: name for name, held in zip(names, files, strict=True) for t in held}
        (folder / INDEX).write_text(json.dumps({"weight_map": content}), encoding="utf-8")
    return folder


def assert_reads(found: HuggingFaceCheckpoint, state: State) -> None:
    """Read every row of every tensor, and the whole files' sums."""
    assert [tensor.spec.name for tensor in found.tensors] == list(state)
    buffer = aligned_buffer(1 << 17)
    for number, file in enumerate(found.files):
        with TensorReader(file, names_in(found, number)) as reader:
            for name in names_in(found, number):
                wanted = state[name].reshape(len(state[name]), -1)
                rows, _ = reader.read_rows(name, 0, len(wanted), buffer)
                assert rows.tobytes() == wanted.contiguous().view(torch.uint8).numpy().tobytes()
            reader.finish(buffer, Watch())


@pytest.mark.parametrize(("n_files", "index"), [(1, False), (1, True), (3, True), (3, False)])
def test_any_split_is_opened(tmp_path, state, n_files, index):
    files = [dict(list(state.items())[i::n_files]) for i in range(n_files)]
    folder = write(tmp_path / "hf", files, index=index)
    for name in ("training_args.bin", "optimizer.bin"):
        torch.save({"state": torch.ones(3)}, folder / name)
    found = open_folder(folder)
    assert_reads(found, state)
    assert len(found.files) == n_files
    assert ["no pytorch_model.bin.index.json" in note for note in found.notes] == (
        [True] if n_files > 1 and not index else []
    )


@pytest.mark.transformers
def test_what_transformers_4_saves_is_opened(tmp_path):
    import transformers

    if not transformers.__version__.startswith("4."):
        pytest.skip("transformers 5 saves safetensors alone")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=THETA, vocab_size=320,
        )
    ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(tmp_path, max_shard_size="60KB", safe_serialization=False)
    found = open_folder(tmp_path)
    assert len(found.files) > 1
    assert_reads(found, model.state_dict())


def test_safetensors_beside_it_count(tmp_path, state):
    folder = write_folder(tmp_path / "hf", [state])
    write(folder, [{"other": torch.ones(3)}])
    found = open_folder(folder)
    assert [file.path.name for file in found.files] == ["model.safetensors"]
    assert found.notes == ("ignored pytorch_model.bin",)


def test_a_tied_head_is_one_storage_or_equal(tmp_path, state):
    headless = {name: tensor for name, tensor in state.items() if name != HEAD}
    columns = state[EMBEDDING].T.contiguous().T
    for number, head in enumerate((state[EMBEDDING], state[EMBEDDING].clone(), columns)):
        files = [headless | {HEAD: head}]
        found = open_folder(write(tmp_path / str(number), files, tie_word_embeddings=True))
        assert_reads(found, headless)
        assert found.dropped == (HEAD,)
    head = columns.clone()
    head[319, 63] = -head[319, 63]
    with refused(LayoutError, SINGLE, "'lm_head.weight' differs"):
        open_folder(write(tmp_path / "other", [headless | {HEAD: head}], tie_word_embeddings=True))


def test_a_strided_view_is_read_in_its_own_order(tmp_path, state):
    turned = state | {EMBEDDING: state[EMBEDDING].T.contiguous().T}
    assert turned[EMBEDDING].stride() == (1, 320)
    assert_reads(open_folder(write(tmp_path / "hf", [turned])), state)


@pytest.mark.parametrize("mask", [torch.tensor(-1e4), torch.ones(2, 2, dtype=torch.bool)])
def test_buffers_are_dropped_and_frequencies_compared(tmp_path, state, mask):
    right = 1.0 / THETA ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8)
    found = open_folder(write(tmp_path / "a", [{INV_FREQ: right, MASK: mask} | state]))
    assert_reads(found, state)
    assert set(found.dropped) == {INV_FREQ, MASK}
    assert "buffers computed from config.json" in found.notes[0]
    with refused(LayoutError, SINGLE, f"{INV_FREQ!r} has 0.5 at 0", "gives 1"):
        open_folder(write(tmp_path / "b", [{INV_FREQ: right / 2} | state]))


def test_quantised_weights_are_refused_by_their_dtype(tmp_path, state):
    name = "model.layers.1.mlp.up_proj.weight"
    with refused(
        CheckpointError, SINGLE, f"{name!r} has an unsupported dtype", "expected bfloat16"
    ):
        open_folder(write(tmp_path / "hf", [state | {name: torch.ones(176, 64, dtype=torch.int8)}]))


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("planted",)


def test_nothing_in_it_is_run(tmp_path, state, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "hf", [state | {"x": _Runs()}])
    with refused(CheckpointError, SINGLE, "mkdir"):
        open_folder(folder)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "../hf/pytorch_model.bin"])
def test_its_index_names_files_of_its_kind(tmp_path, state, name):
    folder = write(tmp_path / "hf", [state], index=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    with refused(CheckpointError, INDEX, "not the name of a .bin file"):
        open_folder(folder)
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(state, "pytorch_model-2.bin")})
    )
    with refused(CheckpointError, INDEX, "pytorch_model-2.bin, which is not there"):
        open_folder(folder)
