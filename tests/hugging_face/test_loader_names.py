"""What lies in an output folder and loaders take: removed with an older model, or refused by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import RunOptions, convert_checkpoint, run
from codellama_convert.errors import Interrupted, OutputError
from codellama_convert.hugging_face.loader_names import is_entrance, is_taken_by_loaders
from codellama_convert.plan.job import Job, Options, plan_conversion
from codellama_convert.staging import crash_points as faults
from codellama_convert.storage.watch import Watch
from tests.outputs import STAGING, StopAfter, content
from tests.witness.checkpoints import MHA, random_model, save_checkpoint

OPTIONS = Options(max_shard_bytes=60_000, workers=1, tile_bytes=8192)
OVER = RunOptions(overwrite=True)

# What loaders begin with.
ENTRANCES = (
    "model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors",
    "model.safetensors.index.fp16.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "pytorch_model.fp16.bin", "pytorch_model.bin.index.fp16.json", "tf_model.h5",
    "tf_model.h5.index.json", "flax_model.msgpack", "flax_model.msgpack.index.json",
    "adapter_config.json",
)  # fmt: skip
# The rest of what save_pretrained of transformers 4 and 5, and of PEFT, writes.
SAVED = (
    "config.json", "generation_config.json", "model-00001-of-00009.safetensors",
    "model.fp16-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin",
    "pytorch_model.fp16-00001-of-00002.bin", "tf_model-00001-of-00002.h5",
    "flax_model-00001-of-00002.msgpack", "adapter_model.safetensors", "adapter_model.bin",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "processor_config.json", "additional_chat_templates",
)  # fmt: skip
# What loaders take too, and no saved Llama model has.
REFUSED = (
    "consolidated.safetensors", "model-1-of-2.safetensors", "lora.safetensors", "tekken.json",
    "tokenizer.model.v3", "custom_generate", "quantize_config.json", "quant_config.json",
    "hf_quant_config.json", "a\nb.safetensors",
)  # fmt: skip
LEFT_ALONE = (
    "README.md", "LICENSE", "notes.txt", "config.json.bak", "my_config.json", "pytorch_model.pt",
    "training_args.bin", "model.gguf", "params.json", "tokenizer", ".hidden", "chat_template.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what becomes of it."""
    folder = tmp_path_factory.mktemp("loader_names")
    save_checkpoint(folder / "in", MHA, random_model(MHA, torch.bfloat16, 3))
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder


def convert(converted: Path, target: Path, how: RunOptions = OVER) -> None:
    run(plan_conversion(converted / "in", OPTIONS), target, how)


def test_the_names_are_told_apart() -> None:
    assert [name for name in ENTRANCES if not is_entrance(name)] == []
    assert [name for name in (*SAVED, *REFUSED, *LEFT_ALONE) if is_entrance(name)] == []
    taken = (*ENTRANCES, *SAVED, *REFUSED)
    assert [name for name in taken if not is_taken_by_loaders(name)] == []
    assert [name for name in (*LEFT_ALONE, "conversion.json") if is_taken_by_loaders(name)] == []


def test_overwriting_removes_what_libraries_save_and_keeps_the_rest(
    converted: Path, tmp_path: Path
) -> None:
    """A chat template, an adapter or a variant of an older model stayed, and was loaded."""
    target = tmp_path / "out"
    target.mkdir()
    for name in (*ENTRANCES, *SAVED, *LEFT_ALONE, "conversion.json"):
        if name != "additional_chat_templates":
            (target / name).write_bytes(b"old")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tools.jinja").write_bytes(b"old")
    convert(converted, target)
    assert content(target) == content(converted / "out") | dict.fromkeys(LEFT_ALONE, b"old")
    assert not (target / "additional_chat_templates").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_saved_model_has_is_refused_before_anything_is_written(
    converted: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    (target / name).write_bytes(b"mine")
    before = content(target)
    with pytest.raises(OutputError, match=r"loaders would use it.*move it away") as caught:
        convert(converted, target)
    assert repr(name)[1:-1] in str(caught.value)
    assert content(target) == before
    assert not (target / STAGING).exists()
    (target / name).unlink()
    convert(converted, target)
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
     "model-00001-of-00009.safetensors", "pytorch_model.bin", "adapter_config.json"],
)  # fmt: skip
def test_a_tokenizer_alone_is_not_put_beside_a_model(
    converted: Path, tmp_path: Path, name: str
) -> None:
    """Its weights and configuration stayed beside the vocabulary of another model, and loaded."""
    job = plan_conversion(converted / "in", Options(model_size="tokenizer_only"))
    target = tmp_path / "out"
    target.mkdir()
    for old in (name, "tokenizer.json", "added_tokens.json", "notes.txt"):
        (target / old).write_bytes(b"old")
    before = content(target)
    with pytest.raises(OutputError, match=f"holds a model .*{name}.*--output_dir"):
        run(job, target, OVER)
    assert content(target) == before
    (target / name).unlink()
    tokenizer = {
        "conversion.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json",
    }  # fmt: skip
    for _ in range(2):  # the second time over a tokenizer alone
        run(job, target, OVER)
        assert set(content(target)) == {*tokenizer, "notes.txt"}


@pytest.mark.parametrize("name", ["chat_template.jinja", "lora.safetensors", "config.json"])
def test_what_came_between_two_runs_is_refused(converted: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=StopAfter(30)))
    (target / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=f"not empty .*{name}"):
        convert(converted, target, RunOptions())
    assert (target / name).read_bytes() == b"mine"
    (target / name).unlink()
    convert(converted, target, RunOptions())
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize("name", ["chat_template.jinja", "lora.safetensors", "config.json"])
def test_what_came_while_a_run_wrote_is_refused_and_the_work_kept(
    converted: Path, tmp_path: Path, name: str
) -> None:
    """It was replaced unasked, or stayed and was loaded, hours after the folder had been empty."""
    target = tmp_path / "out"

    def put(_job: Job, _staged: Path, _watch: Watch) -> None:
        (target / name).write_bytes(b"mine")

    with pytest.raises(OutputError, match=f"not empty .*{name}"):
        convert(converted, target, RunOptions(check_staged=put))
    assert content(target) == {name: b"mine"}
    assert list((target / STAGING).glob("*.safetensors"))
    (target / name).unlink()
    convert(converted, target, RunOptions())
    assert content(target) == content(converted / "out")


def test_a_readme_that_came_while_a_run_wrote_is_in_the_way_of_a_card_only(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"

    def put(_job: Job, _staged: Path, _watch: Watch) -> None:
        (target / "README.md").write_bytes(b"mine")

    with pytest.raises(OutputError, match=r"not empty .*README\.md"):
        convert(converted, target, RunOptions(check_staged=put, model_card=True))
    convert(converted, target, RunOptions(check_staged=put))
    assert content(target) == content(converted / "out") | {"README.md": b"mine"}


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
@pytest.mark.parametrize("name", ["additional_chat_templates", "chat_template.jinja"])
def test_a_link_is_removed_and_not_followed(converted: Path, tmp_path: Path, name: str) -> None:
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tools.jinja").write_bytes(b"mine")
    target.mkdir()
    (target / name).symlink_to(elsewhere)
    (target / "added_tokens.json").symlink_to(tmp_path / "nowhere")
    convert(converted, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(content(converted / "out"))
    assert content(elsewhere) == {"tools.jinja": b"mine"}


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(
    converted: Path, tmp_path: Path, name: str
) -> None:
    """It was found by the last rename, with everything written and the older model gone."""
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    (target / name).unlink(missing_ok=True)
    (target / name).mkdir()
    (target / name / "mine").write_bytes(b"mine")
    before = content(target)
    with pytest.raises(OutputError, match=f"{name}.*a folder"):
        convert(converted, target)
    assert content(target) == before
    assert content(target / name) == {"mine": b"mine"}


def test_nothing_that_loaders_begin_with_outlives_the_rest(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for name in (*ENTRANCES, "config.json", "pytorch_model-00001-of-00002.bin"):
        (target / name).write_bytes(b"old")
    seen: list[set[str]] = []

    def look(name: str) -> None:
        if name in ("old index removed", "old file removed", "file moved"):
            seen.append(set(content(target)))

    monkeypatch.setattr(faults, "hook", look)
    convert(converted, target)
    assert {"config.json", "pytorch_model-00001-of-00002.bin"} <= seen[0]
    assert len(seen) > 10
    assert not set().union(*seen).intersection(ENTRANCES)
