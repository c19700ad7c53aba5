"""A Hugging Face folder of any writer is opened whole, or refused with the true cause."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest
import torch

from codellama_convert.errors import CheckpointError, ConfigError, LayoutError
from codellama_convert.hugging_face.folder import HuggingFaceCheckpoint, open_folder
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.placement import Part
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32
from tests.hugging_face.folders import (
    EMBEDDING,
    HEAD,
    SINGLE,
    THETA,
    config,
    names_in,
    split,
    write_folder,
)
from tests.refusals import refused
from tests.witness.checkpoints import State

MODEL = ModelConfig(
    hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=THETA, vocab_size=320,
)  # fmt: skip
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def frequencies(theta: float = THETA, head_dim: int = 8) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_holds(found: HuggingFaceCheckpoint, state: State) -> None:
    """Read every tensor where the checkpoint says that it lies."""
    assert [tensor.spec.name for tensor in found.tensors] == list(state)
    for tensor in found.tensors:
        wanted = state[tensor.spec.name]
        assert tensor.spec.shape == tuple(wanted.shape)
        assert f"torch.{tensor.spec.dtype.name}" == str(wanted.dtype)
        file = found.files[tensor.file]
        at = file.storages[tensor.spec.name].offset
        assert file.path.read_bytes()[at : at + tensor.spec.n_bytes] == raw(wanted)


@pytest.mark.parametrize("n_files", [1, 2, 5])
def test_any_split_is_opened(tmp_path, state, n_files):
    folder = write_folder(tmp_path / "hf", split(state, n_files))
    (folder / "tokenizer.model").write_bytes(b"")
    found = open_folder(folder)
    assert_holds(found, state)
    assert len(found.files) == n_files
    assert (found.folder, found.config, found.dtype) == (folder, MODEL, BFLOAT16)
    assert (found.dropped, found.notes) == ((), ())
    assert found.tokenizer == folder / "tokenizer.model"
    assert found.config_sha256 == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert sorted(name for i in range(n_files) for name in names_in(found, i)) == sorted(state)
    last = found.tensors[-1]
    assert last.placement.parts == (Part(last.file, range(320), range(64)),)
    assert last.placement.name == HEAD


def test_files_without_an_index_are_all_taken(tmp_path, state):
    folder = write_folder(tmp_path / "hf", split(state, 3), index=False)
    found = open_folder(folder)
    assert_holds(found, state)
    assert found.tokenizer is None
    (note,) = found.notes
    assert "no model.safetensors.index.json" in note
    assert "model-00001-of-00003.safetensors" in note


def test_an_index_of_one_file_is_read(tmp_path, state):
    assert_holds(open_folder(write_folder(tmp_path / "hf", [state], index=True)), state)


def test_other_weights_beside_the_safetensors_are_passed_over(tmp_path, state):
    folder = write_folder(tmp_path / "hf", [state])
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "pytorch_model-00001-of-00002.bin"):
        (folder / name).write_bytes(b"other")
    found = open_folder(folder)
    assert_holds(found, state)
    (note,) = found.notes
    assert "consolidated.safetensors, pytorch_model-00001-of-00002.bin" in note


@pytest.mark.transformers
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["5GB", "60KB"])
def test_what_save_pretrained_writes_is_opened(tmp_path, tied, size):
    import transformers

    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=THETA, vocab_size=320,
            tie_word_embeddings=tied,
        )
    ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(tmp_path, max_shard_size=size)
    found = open_folder(tmp_path)
    assert (len(found.files) > 1) == (size == "60KB")
    state = {n: t for n, t in model.state_dict().items() if not (tied and n == HEAD)}
    assert_holds(found, state)
    assert found.config.tie_word_embeddings == tied
    assert [HEAD in note for note in found.notes] == [True] * tied


def test_a_tied_head_is_the_embedding(tmp_path, state):
    headless = {name: tensor for name, tensor in state.items() if name != HEAD}
    found = open_folder(write_folder(tmp_path / "hf", [headless], tie_word_embeddings=True))
    assert_holds(found, headless)
    assert found.config.tie_word_embeddings
    (note,) = found.notes
    assert "lm_head.weight is not stored" in note
    with refused(LayoutError, "'lm_head.weight' is missing", "tie_word_embeddings to true"):
        open_folder(write_folder(tmp_path / "hf", [headless]))


@pytest.mark.parametrize("n_files", [1, 3])
def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path, state, n_files):
    twice = state | {HEAD: state[EMBEDDING].clone()}
    found = open_folder(
        write_folder(tmp_path / "a", split(twice, n_files), tie_word_embeddings=True)
    )
    assert_holds(found, {name: tensor for name, tensor in twice.items() if name != HEAD})
    assert found.dropped == (HEAD,)
    (note,) = found.notes
    assert "equal to the embedding" in note
    twice[HEAD][319, 63] += 1
    folder = write_folder(tmp_path / "b", split(twice, n_files), tie_word_embeddings=True)
    with refused(
        LayoutError, "'lm_head.weight' differs from 'model.embed_tokens.weight'", "to false"
    ):
        open_folder(folder)
    assert_holds(open_folder(write_folder(tmp_path / "c", split(twice, n_files))), twice)


def test_several_dtypes_need_the_one_that_all_become(tmp_path, state):
    norms = {n: t.to(torch.float32) for n, t in state.items() if "norm" in n}
    folder = write_folder(tmp_path / "hf", [state | norms])
    with refused(LayoutError, SINGLE, "'model.layers.0.input_layernorm.weight' is float32",
                 "others are bfloat16", "--dtype"):  # fmt: skip
        open_folder(folder)
    found = open_folder(folder, dtype=FLOAT16)
    assert_holds(found, state | norms)
    assert found.dtype == FLOAT16
    assert {tensor.spec.dtype for tensor in found.tensors} == {BFLOAT16, FLOAT32}
    assert found.notes == (
        "of 21 tensors, 16 are bfloat16 and 5 are float32: each is cast from its own dtype",
    )


def test_the_tensors_dtype_counts_and_not_what_config_json_says(tmp_path, state):
    found = open_folder(write_folder(tmp_path / "hf", [state], torch_dtype="float16"))
    assert found.dtype is BFLOAT16
    assert found.notes == ("config.json says float16, but the tensors are bfloat16",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_buffers_of_old_exports_are_dropped(tmp_path, state, dtype):
    buffers = {
        INV_FREQ: frequencies().to(dtype),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.1.self_attn.masked_bias": torch.tensor([1], dtype=torch.uint8),
    }
    found = open_folder(write_folder(tmp_path / "hf", [buffers | state]))
    assert_holds(found, state)
    assert set(found.dropped) == set(buffers)
    (note,) = found.notes
    assert "(and 2 others): buffers computed from config.json" in note


@pytest.mark.parametrize(
    ("saved", "facts"),
    [
        (frequencies(10000.0), ["has 0.1 at 1", "rope_theta 1e+06 gives 0.0316228"]),
        (frequencies() / 2, ["has 0.5 at 0", "gives 1"]),
        (frequencies(999000.0), ["at 1", "gives"]),
        (torch.tensor([1.0, float("nan"), 0.001, 0.0000316]), ["has nan at 1"]),
        (frequencies(head_dim=16), ["shape (8,), expected (4,)"]),
        (frequencies(10000.0).to(torch.bfloat16), ["at 1", "gives 0.0316228"]),
    ],
)
def test_frequencies_that_contradict_rope_theta_are_refused(tmp_path, state, saved, facts):
    with refused(LayoutError, SINGLE, f"{INV_FREQ!r}", *facts):
        open_folder(write_folder(tmp_path / "hf", [state | {INV_FREQ: saved}]))


def test_each_missing_tensor_is_refused_by_name(tmp_path, state):
    for name in state:
        rest = {other: tensor for other, tensor in state.items() if other != name}
        with refused(LayoutError, f"{name!r} is missing"):
            open_folder(write_folder(tmp_path / "hf", [rest]))
    open_folder(write_folder(tmp_path / "hf", [state]))


def test_layers_that_only_config_json_has_are_not_counted_through(tmp_path, state):
    """16 million layers took minutes to spell out."""
    folder = write_folder(tmp_path / "hf", [state], num_hidden_layers=1 << 24)
    with refused(LayoutError, "'model.layers.2.self_attn.q_proj.weight' is missing"):
        open_folder(folder)


def test_a_folder_that_is_not_there_is_one(tmp_path):
    with refused(CheckpointError, "absent", "No such file"):
        open_folder(tmp_path / "absent")


def test_a_missing_config_is_one(tmp_path, state):
    folder = write_folder(tmp_path / "hf", [state])
    (folder / "config.json").unlink()
    with refused(ConfigError, "config.json", "No such file"):
        open_folder(folder)


def test_what_tells_the_files_from_others_changes_with_them(tmp_path, state):
    """A header says nothing of the weights: of two models of one shape it is the same."""
    folder = write_folder(tmp_path / "hf", split(state, 2))
    first = open_folder(folder).inputs()
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert first == open_folder(folder).inputs()
    assert list(first) == ["config.json", one, two]
    status = (folder / one).stat()
    os.utime(folder / one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert changed(first, open_folder(folder).inputs()) == {one}
    (folder / "config.json").write_text(json.dumps(config(rope_theta=5e5)), encoding="utf-8")
    assert changed(first, open_folder(folder).inputs()) == {one, "config.json"}


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
