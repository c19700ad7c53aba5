"""Any Hugging Face folder of the model: its weights are Meta's, bit for bit, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codellama_convert import Options, plan_conversion, verify_output
from codellama_convert.errors import ConfigError
from tests.cli.running import run
from tests.outputs import flip_bit

ALONE = "compared the weights alone: no configuration, tokenizer, conversion.json or other file"


@pytest.fixture
def tensors(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "one" / "model.safetensors")


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder that another program wrote: no record, no small files of ours."""
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


def write_split(folder: Path, tensors: dict[str, torch.Tensor], n_files: int) -> None:
    """Split by turns, as no writer of shards does, with an index that says more than ours."""
    names = [f"part-{n}.safetensors" for n in range(n_files)]
    places = {name: names[n % n_files] for n, name in enumerate(sorted(tensors))}
    for file in names:
        inside = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(inside, folder / file, metadata={"format": "pt", "by": "somebody"})
    index = {"metadata": {"total_size": 1, "by": "somebody"}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def verify(place: Path, folder: Path, *more: str):
    return run("verify", place / "in", folder, "--weights_only", *more)


@pytest.mark.parametrize("file", ["model.safetensors", "weights.safetensors"])
def test_one_file_of_any_name_is_compared(place, strange, tensors, file):
    """verify asked for our record, our small files and our split: a hub's folder always differed."""
    save_file(tensors, strange / file)
    result = verify(place, strange)
    assert result.exit_code == 0, result.output
    assert f"note: {ALONE}" in result.stderr.splitlines()
    assert result.stdout.startswith(f"{strange} equals Meta's ranks: {len(tensors)} tensors, ")
    assert run("verify", place / "in", strange).exit_code == 1


def test_another_split_is_compared(place, strange, tensors):
    write_split(strange, tensors, 3)
    assert verify(place, strange).exit_code == 0
    told = json.loads(verify(place, strange, "--json").stdout)
    assert told["ok"]
    assert told["against"] == "ranks"
    assert told["n_tensors"] == len(tensors)
    assert ALONE in told["notes"]


def test_our_own_folder_is_compared_without_its_record(place, many):
    (many / "conversion.json").write_text("{")
    (many / "tokenizer.json").unlink()
    assert verify(place, many).exit_code == 0


def test_links_as_in_a_hubs_cache_are_followed(place, strange, tensors, tmp_path):
    blob = tmp_path / "blob"
    save_file(tensors, blob)
    (strange / "model.safetensors").symlink_to(blob)
    assert verify(place, strange).exit_code == 0


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize(
    ("name", "start"),
    [("lm_head.weight", -1), ("model.layers.1.self_attn.k_proj.weight", 40), ("model.norm.weight", 0)],
)  # fmt: skip
def test_a_flipped_bit_is_found(place, strange, tensors, n_files, name, start):
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.int16).view(-1)[start] ^= 1
    write_split(strange, tensors, n_files)
    result = verify(place, strange)
    assert result.exit_code == 1
    first, last = result.stdout.splitlines()
    assert f"tensor {name!r} differs" in first
    assert "DIFFERS from Meta's ranks" in last


def test_a_bit_flipped_in_the_file_is_found(place, one):
    flip_bit(one / "model.safetensors", -1)
    assert verify(place, one).exit_code == 1


def test_a_missing_tensor_is_found(place, strange, tensors):
    del tensors["model.layers.0.mlp.up_proj.weight"]
    write_split(strange, tensors, 2)
    result = verify(place, strange)
    assert result.exit_code == 1
    assert "tensor 'model.layers.0.mlp.up_proj.weight' is missing" in result.stdout


def test_an_extra_tensor_is_found_but_not_a_buffer_of_older_transformers(place, strange, tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_split(strange, tensors, 2)
    result = verify(place, strange)
    assert result.exit_code == 0, result.output
    assert "note: not compared: 1 x rotary_emb.inv_freq" in result.stderr
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(4, dtype=torch.bfloat16)
    write_split(strange, tensors, 2)
    result = verify(place, strange)
    assert result.exit_code == 1
    assert "tensor 'model.layers.0.self_attn.q_proj.bias' does not belong" in result.stdout


def test_an_index_that_leads_elsewhere_is_found(place, strange, tensors):
    write_split(strange, tensors, 2)
    path = strange / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "part-1.safetensors"
    assert "part-0" in path.read_text()
    path.write_text(json.dumps(index))
    result = verify(place, strange)
    assert result.exit_code == 1
    assert "tensor 'lm_head.weight' is in part-0.safetensors, the index says" in result.stdout


def test_a_cast_is_compared_and_said(place, strange, tensors):
    cast = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    write_split(strange, cast, 2)
    result = verify(place, strange)
    assert result.exit_code == 0, result.output
    assert "note: the ranks are bfloat16, the folder is float32: " in result.stderr
    assert verify(place, strange, "--dtype", "float32").exit_code == 0
    other = verify(place, strange, "--dtype", "bfloat16")
    assert other.exit_code == 1
    assert "the tensors are float32, not bfloat16 as asked for" in other.stdout
    cast["model.norm.weight"].view(torch.int32)[0] ^= 1
    write_split(strange, cast, 2)
    assert verify(place, strange).exit_code == 1


def test_a_folder_of_no_such_files_is_refused(place, strange, tensors):
    result = verify(place, strange)
    assert result.exit_code == 1
    assert "holds no model.safetensors.index.json, and 0 files" in result.stderr
    (strange / "pytorch_model.bin").touch()
    told = verify(place, strange).stderr
    for fact in ("holds pytorch_model.bin", "only safetensors are compared", "save_pretrained"):
        assert fact in told
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tensors, strange / name)
    assert "and 2 files" in verify(place, strange).stderr


@pytest.mark.parametrize(
    "more",
    [
        ["--variant", "chat"], ["--max_shard_size", "5GB"], ["--max_position_embeddings", "9"],
        ["--skip_tokenizer"], ["--tokenizer_class", "LlamaTokenizer"], ["--tokenizer_model", "x"],
        ["--model_size", "tokenizer_only"],
    ],
)  # fmt: skip
def test_what_says_nothing_of_the_weights_is_a_wrong_use(place, one, more):
    assert verify(place, one, *more).exit_code == 2
    for read in (["--io", "buffered"], ["--workers", "1"], ["--max_ram", "4MB"]):
        assert verify(place, one, *read).exit_code == 0


def test_without_the_checkpoint_it_is_a_wrong_use(one):
    result = run("verify", one, "--weights_only")
    assert result.exit_code == 2
    assert "--weights_only is of no use without the source" in result.stderr


def test_the_library_does_it_too(place, job, one):
    (one / "conversion.json").unlink()
    (one / "config.json").unlink()
    report = verify_output(one, job, weights_only=True)
    assert (report.against, report.problems, report.notes) == ("ranks", (), (ALONE,))
    assert verify_output(one, job).problems
    with pytest.raises(ConfigError, match="job is None"):
        verify_output(one, weights_only=True)
    alone = plan_conversion(place / "in", Options(model_size="tokenizer_only"))
    with pytest.raises(ConfigError, match="weights"):
        verify_output(one, alone, weights_only=True)
