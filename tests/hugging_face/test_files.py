"""The index and the files that it names belong together, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codellama_convert.errors import CheckpointError, LayoutError
from codellama_convert.hugging_face.folder import open_folder
from tests.hugging_face.folders import (
    EMBEDDING,
    INDEX,
    Q_PROJ,
    SINGLE,
    split,
    write_folder,
    write_index,
)
from tests.refusals import refused


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
