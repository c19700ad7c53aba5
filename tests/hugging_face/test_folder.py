"""A Hugging Face folder of any writer is opened whole, or refused with the true cause."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
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
    INDEX,
    SINGLE,
    THETA,
    config,
    names_in,
    weights,
    write_folder,
    write_index,
)
from tests.refusals import refused
from tests.witness.checkpoints import State

MODEL = ModelConfig(
    hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=THETA, vocab_size=320,
)  # fmt: skip
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.fixture(scope="module")
def state() -> State:
    return weights()


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


def split(state: State, n_files: int) -> list[State]:
    """Deal tensors out like cards, which no program's split does."""
    return [dict(list(state.items())[i::n_files]) for i in range(n_files)]


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


ONE = torch.ones(4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": ONE}, ["q_proj.bias' is a bias", "no biases"]),
        ({"model.layers.0.mlp.up_proj.qweight": ONE.to(torch.int32)}, ["up_proj.qweight'", "quantised"]),
        ({"model.layers.0.mlp.up_proj.scales": ONE}, ["up_proj.scales'", "quantised", "before quantisation"]),
        ({"model.layers.0.mlp.up_proj.weight.absmax": ONE}, ["absmax'", "quantised"]),
        ({"model.layers.0.mlp.up_proj.SCB": ONE.float()}, ["SCB'", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64).to(torch.float8_e4m3fn)}, [f"{Q_PROJ!r} is F8_E4M3", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}, [f"{Q_PROJ!r} is I8", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64, dtype=torch.float64)}, [f"{Q_PROJ!r} is F64", "bfloat16, float16"]),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": ONE}, ["lora_A", "adapter", "merge"]),
        ({"model.layers.0.self_attn.q_proj.base_layer.weight": ONE}, ["base_layer", "adapter", "merge"]),
        ({"model.layers.0.mlp.experts.0.w1.weight": ONE}, ["mixture of experts"]),
        ({"model.layers.0.self_attn.q_norm.weight": ONE}, ["q_norm.weight' normalises queries"]),
        ({"model.layers.2.mlp.up_proj.weight": ONE}, ["layer beyond the num_hidden_layers"]),
        ({"tok_embeddings.weight": ONE}, ["'tok_embeddings.weight' has Meta's name"]),
        ({"score.weight": ONE, "value.weight": ONE.clone()}, ["'score.weight' does not belong to a Llama model (and 1 other)"]),
        ({Q_PROJ: torch.ones(64, 32, dtype=torch.bfloat16)}, [SINGLE, f"{Q_PROJ!r} has shape (64, 32), expected (64, 64)", "same model"]),
    ],
)  # fmt: skip
def test_tensors_that_no_llama_has_are_refused_by_name(tmp_path, state, more, facts):
    with refused(LayoutError, *facts):
        open_folder(write_folder(tmp_path / "hf", [state | more]))


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module."])
def test_the_prefix_of_a_wrapper_is_named(tmp_path, state, prefix):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    with refused(LayoutError, f"begins with {prefix!r}", "inside the wrapper"):
        open_folder(write_folder(tmp_path / "hf", [wrapped]))


def test_a_model_without_its_head_is_called_that(tmp_path, state):
    bare = {n.removeprefix("model."): t for n, t in state.items() if n != HEAD}
    with refused(LayoutError, "'embed_tokens.weight' is there", "without its head"):
        open_folder(write_folder(tmp_path / "hf", [bare]))


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


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])  # fmt: skip
def test_an_adapter_beside_the_model_is_refused(tmp_path, state, name):
    """transformers would put it on the weights, and the ranks would be another model."""
    folder = write_folder(tmp_path / "hf", [state])
    (folder / name).write_bytes(b"{}")
    with refused(CheckpointError, f"holds {name}", "adapter", "merge"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["consolidated.00.pth", "params.json"], ["consolidated.00.pth", "Meta's layout"]),
        (["model.bin", "config.json"], ["model.bin", "save_pretrained"]),
        (["model-q4.gguf"], ["model-q4.gguf", "llama.cpp", "made from"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "Mistral"]),
        (["tf_model.h5"], ["tf_model.h5", "another framework"]),
        (["config.json"], ["neither safetensors files nor pytorch_model.bin", "config.json"]),
    ],
)
def test_a_folder_of_another_kind_is_told_what_it_holds(tmp_path, names, facts):
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with refused(CheckpointError, *facts):
        open_folder(tmp_path)


def test_a_folder_that_is_not_there_is_one(tmp_path):
    with refused(CheckpointError, "absent", "No such file"):
        open_folder(tmp_path / "absent")


def test_a_missing_config_is_one(tmp_path, state):
    folder = write_folder(tmp_path / "hf", [state])
    (folder / "config.json").unlink()
    with refused(ConfigError, "config.json", "No such file"):
        open_folder(folder)


def map_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return found


SECOND = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({Q_PROJ: "model-00004-of-00004.safetensors"}, ["model-00004-of-00004.safetensors, which is not there", "has 4 files"]),
        ({EMBEDDING: SECOND}, [f"{EMBEDDING!r} is in model-00002", "but it is in model-00001"]),
        ({"ghost.weight": SECOND}, ["'ghost.weight' is in model-00002", "in no file"]),
        ({Q_PROJ: None}, ["'model.layers.1.self_attn.q_proj.weight' is in None", "not the name"]),
        ({Q_PROJ: "../hf/" + SECOND}, ["is in '../hf/", "not the name"]),
        ({Q_PROJ: "pytorch_model.bin"}, ["is in 'pytorch_model.bin'", "not the name"]),
        ({Q_PROJ: ""}, ["is in ''", "not the name"]),
    ],
)  # fmt: skip
def test_an_index_that_says_otherwise_than_the_files_is_refused(tmp_path, state, change, facts):
    folder = write_folder(tmp_path / "hf", split(state, 3))
    open_folder(folder)
    write_index(folder, map_of(folder) | change)
    with refused(CheckpointError, INDEX, *facts):
        open_folder(folder)


def test_a_tensor_that_the_index_leaves_out_is_refused(tmp_path, state):
    folder = write_folder(tmp_path / "hf", split(state, 3))
    write_index(folder, {n: f for n, f in map_of(folder).items() if n != Q_PROJ})
    with refused(CheckpointError, INDEX, f"{Q_PROJ!r} is nowhere", "but it is in model-0000"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"", "not JSON"), (b"[]", "not a JSON object"), (b"{}", "no 'weight_map'"),
     (b'{"weight_map": {}}', "no 'weight_map'"), (b'{"weight_map": [1]}', "no 'weight_map'"),
     (b" " * ((4 << 20) + 1), "too large")],
)  # fmt: skip
def test_an_index_that_is_not_one_is_refused(tmp_path, state, content, fact):
    folder = write_folder(tmp_path / "hf", split(state, 3))
    (folder / INDEX).write_bytes(content)
    with refused(CheckpointError, INDEX, fact):
        open_folder(folder)


def test_a_missing_shard_is_named(tmp_path, state):
    folder = write_folder(tmp_path / "hf", split(state, 3))
    (folder / SECOND).unlink()
    with refused(CheckpointError, INDEX, f"names {SECOND}, which is not there", "has 3 files"):
        open_folder(folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_tensor_in_two_files_is_refused(tmp_path, state, index):
    files = split(state, 2)
    files[1][EMBEDDING] = state[EMBEDDING].clone()
    folder = write_folder(tmp_path / "hf", files, index=index)
    with refused(LayoutError, f"{EMBEDDING!r} is in model-00001", "and in model-00002"):
        open_folder(folder)


def test_one_file_and_an_index_of_others_are_two_models(tmp_path, state):
    folder = write_folder(tmp_path / "hf", split(state, 2))
    write_folder(folder, [state])
    with refused(CheckpointError, f"holds {SINGLE} and {INDEX}", "remove the one"):
        open_folder(folder)


def test_a_damaged_shard_is_named(tmp_path, state):
    folder = write_folder(tmp_path / "hf", split(state, 3))
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-1])
    with refused(CheckpointError, SECOND, "truncated"):
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
