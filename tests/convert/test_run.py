"""The main job: the right bytes under the right names, and the same model behind them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import OutputError
from codellama_convert.plan.job import Options
from codellama_convert.plan.run_options import RunOptions
from tests.convert.bits import assert_same_bits, library_bytes
from tests.witness.checkpoints import (
    GQA,
    MHA,
    STORAGES,
    WIDE,
    Shape,
    expected_state_dict,
    random_model,
    read_output,
    save_checkpoint,
)
from tests.witness.meta_forward import meta_logits

OVERWRITE = RunOptions(overwrite=True)

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "tools" / "build_stories260k.py").exists(),
    reason="the trained weights of ../shared are not in this clone",
)


@st.composite
def shapes_and_ranks(draw: st.DrawFn) -> tuple[Shape, int]:
    n_ranks = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]))
    n_kv_heads = n_ranks * draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([2, 4, 6, 8]))
    hidden = n_ranks * draw(st.integers(1, 9))
    vocab = n_ranks * draw(st.integers(1, 9))
    shape = Shape(n_heads * head_dim, draw(st.integers(1, 2)), n_heads, n_kv_heads, hidden, vocab)
    return shape, n_ranks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=shapes_and_ranks(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    storage=st.sampled_from(STORAGES),
    max_shard_bytes=st.sampled_from([1, 700, 5000, 100_000, 5_000_000_000]),
    tile_bytes=st.sampled_from([1, 64, 1000, 4096, 10_000, 1 << 20]),
    workers=st.sampled_from([1, 2, 4, 8]),
    io_mode=st.sampled_from(["auto", "buffered"]),
    seed=st.integers(0, 2**16),
)
def test_each_file_equals_what_the_library_writes(
    tmp_path_factory, model, dtype, storage, max_shard_bytes, tile_bytes, workers, io_mode, seed
):
    shape, n_ranks = model
    folder = tmp_path_factory.mktemp("bytes")
    state = random_model(shape, dtype, seed, special_values=True)
    save_checkpoint(
        folder / "in", shape, state, n_ranks=n_ranks, storage=storage, tokenizer=False,
        params={"multiple_of": shape.hidden, "ffn_dim_multiplier": shape.hidden / (shape.dim * 8 // 3)},
    )  # fmt: skip
    options = Options(
        skip_tokenizer=True, max_shard_bytes=max_shard_bytes, tile_bytes=tile_bytes,
        workers=workers, io_mode=io_mode,
    )  # fmt: skip
    convert_checkpoint(folder / "in", folder / "out", options=options)
    expected = expected_state_dict(state, shape)
    assert_same_bits(read_output(folder / "out"), expected)
    files = sorted((folder / "out").glob("*.safetensors"))
    for path in files:
        names = load_file(path).keys()
        content = library_bytes({name: expected[name] for name in names}, folder)
        assert path.read_bytes() == content
        if len(files) > 1 and len(names) > 1:
            assert sum(expected[name].nbytes for name in names) <= max_shard_bytes
    shutil.rmtree(folder)


def test_the_byte_comparison_sees_one_flipped_bit(tmp_path):
    state = random_model(GQA, torch.bfloat16, 1)
    expected = expected_state_dict(state, GQA)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    assert bytes(content) == library_bytes(expected, tmp_path)
    content[-1] ^= 1
    path.write_bytes(content)
    assert path.read_bytes() != library_bytes(expected, tmp_path)
    with pytest.raises(AssertionError):
        assert_same_bits(read_output(tmp_path / "out"), expected)


def test_files_are_split_greedily_in_the_order_of_the_state_dict(tmp_path):
    state = random_model(MHA, torch.float32, 3)
    save_checkpoint(tmp_path / "in", MHA, state)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(max_shard_bytes=65_536))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    # float32 bytes of MHA: embedding and head 40960 each; in a layer q, k, v, o 4096 each, gate,
    # up and down 12288 each, two norms 128 each; the last norm 128. A layer makes 53504.
    assert index["metadata"] == {"total_size": 40960 * 2 + 53504 * 2 + 128}
    layer_0 = {
        "model-00001-of-00004.safetensors": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        "model-00002-of-00004.safetensors": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"],
    }  # fmt: skip
    expected = {"model.embed_tokens.weight": "model-00001-of-00004.safetensors"}
    for file, names in layer_0.items():
        expected |= {f"model.layers.0.{name}.weight": file for name in names}
    for name in layer_0["model-00001-of-00004.safetensors"]:
        expected[f"model.layers.1.{name}.weight"] = "model-00002-of-00004.safetensors"
    # File 2 holds 53504 bytes by now; gate's 12288 would make it 65792.
    for name in layer_0["model-00002-of-00004.safetensors"]:
        expected[f"model.layers.1.{name}.weight"] = "model-00003-of-00004.safetensors"
    expected["model.norm.weight"] = "model-00003-of-00004.safetensors"
    expected["lm_head.weight"] = "model-00004-of-00004.safetensors"
    assert index["weight_map"] == expected


@pytest.mark.transformers
@pytest.mark.parametrize(("shape", "n_ranks"), [(MHA, 1), (MHA, 4), (GQA, 2), (WIDE, 8)])
@pytest.mark.parametrize("rope_theta", [10000, 1000000.0])
def test_the_converted_model_gives_the_logits_of_metas_forward_pass(
    tmp_path, shape, n_ranks, rope_theta
):
    from transformers import LlamaForCausalLM

    state = random_model(shape, torch.float32, 7)
    save_checkpoint(
        tmp_path / "in", shape, state, n_ranks=n_ranks, params={"rope_theta": rope_theta}
    )
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    tokens = torch.randint(0, shape.vocab, (24,), generator=torch.Generator().manual_seed(0))
    expected = meta_logits(state, shape, tokens, rope_theta=float(rope_theta))

    def logits(folder: Path) -> torch.Tensor:
        model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with torch.no_grad():
            return model(tokens[None]).logits[0]

    assert (logits(tmp_path / "out") - expected).abs().max() < 1e-4

    weights = load_file(tmp_path / "out" / "model.safetensors")
    half = shape.head_dim // 2
    for control in ("no reordering", "inverse reordering"):
        changed = {}
        for name, tensor in weights.items():
            if "q_proj" in name or "k_proj" in name:
                layer = name.split(".")[2]
                meta = state[
                    f"layers.{layer}.attention.{'wq' if 'q_proj' in name else 'wk'}.weight"
                ]
                heads = meta.view(-1, 2, half, shape.dim).transpose(1, 2).reshape(meta.shape)
                changed[name] = meta.clone() if control == "no reordering" else heads.contiguous()
            else:
                changed[name] = tensor
        folder = tmp_path / control
        shutil.copytree(tmp_path / "out", folder)
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        if half > 2 or control == "no reordering":  # with 4 rows a head the inverse is the same
            assert (logits(folder) - expected).abs().max() > 1e-2, control


@pytest.mark.transformers
@needs_shared
def test_stories260k_tells_its_story_from_one_two_and_four_ranks(tmp_path):
    from transformers import AutoTokenizer, LlamaForCausalLM

    told = (SHARED / "data" / "stories260K" / "expected_greedy.txt").read_text().strip()
    contents = []
    for n_ranks in (1, 2, 4):
        source, target = tmp_path / f"in{n_ranks}", tmp_path / f"out{n_ranks}"
        tool = SHARED / "tools" / "build_stories260k.py"
        subprocess.run([sys.executable, tool, source, "--shards", str(n_ranks)], check=True)
        convert_checkpoint(source, target)
        # conversion.json names the ranks that it came from; all else is the same.
        names = sorted({p.name for p in target.iterdir()} - {"conversion.json"})
        contents.append({name: (target / name).read_bytes() for name in names})
        model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(target)
        ids = model.generate(
            torch.tensor([[1]]), max_new_tokens=256, do_sample=False, pad_token_id=0
        )
        assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == told
    assert contents[0] == contents[1] == contents[2]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(contents[0])


# --- the output folder ----------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused_unless_told_to_overwrite(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.bfloat16, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    convert_checkpoint(tmp_path / "in", tmp_path / "out", run_options=OVERWRITE)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_overwriting_leaves_no_file_of_the_old_model(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.bfloat16, 1))
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(max_shard_bytes=30_000))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    convert_checkpoint(tmp_path / "in", tmp_path / "out", run_options=OVERWRITE)
    left = [p.name for p in (tmp_path / "out").iterdir() if "model" in p.name]
    assert sorted(left) == ["model.safetensors", "tokenizer.model"]


def test_the_checkpoints_own_folder_is_refused_as_output(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.bfloat16, 1))
    before = sorted(p.name for p in (tmp_path / "in").iterdir())
    with pytest.raises(OutputError, match="input folder"):
        convert_checkpoint(tmp_path / "in", tmp_path / "in", run_options=OVERWRITE)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="modes as POSIX has them")
def test_files_get_the_users_umask(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.bfloat16, 1))
    code = (
        "import os; os.umask(0o027)\n"
        "from pathlib import Path\n"
        "from codellama_convert.convert.run import convert_checkpoint\n"
        f"convert_checkpoint(Path({str(tmp_path / 'in')!r}), Path({str(tmp_path / 'out')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path.name
