"""Checkpoints written by hand are as Meta's: values, ranks, storages, params.json, tokenizer."""

from __future__ import annotations

import json
import zipfile
from itertools import pairwise

import pytest
import torch

from tests.witness.checkpoints import (
    ABSENT,
    CODE_LLAMA_7B,
    CODE_LLAMA_13B,
    CODE_LLAMA_34B,
    CODE_LLAMA_70B,
    GQA,
    MHA,
    STORAGES,
    WIDE,
    Shape,
    State,
    Storage,
    feed_forward_rule,
    meta_shapes,
    params_json,
    random_model,
    same_bits,
    save_checkpoint,
    split_ranks,
    tokenizer_model,
)
from tests.witness.sparse import write_sparse_checkpoint

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_hold_every_kind_in_every_tensor(dtype):
    state = random_model(GQA, dtype, special_values=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == meta_shapes(GQA)
    for tensor in state.values():
        assert tensor.dtype == dtype
        assert tensor.isnan().any()
        assert tensor.isposinf().any()
        assert tensor.isneginf().any()
        assert ((tensor == 0) & tensor.signbit()).any()


def test_ordinary_values_are_finite_and_follow_the_seed():
    one, again, other = (random_model(GQA, torch.float16, seed) for seed in (3, 3, 4))
    for name, tensor in one.items():
        assert tensor.isfinite().all()
        assert same_bits(tensor, again[name])
        assert not same_bits(tensor, other[name])


def test_same_bits_sees_what_equality_does_not():
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert same_bits(zero, zero.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.half())
    assert not same_bits(zero, zero.view(1, 1))


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_ranks_put_side_by_side_are_the_model(n_ranks):
    """Spelled from the shapes: what is narrower in a rank was split there, whatever the table."""
    state = random_model(WIDE, special_values=True)
    ranks = split_ranks(state, n_ranks)
    assert len(ranks) == n_ranks
    for name, whole in state.items():
        parts = [rank[name] for rank in ranks]
        narrower = [i for i in range(whole.dim()) if parts[0].shape[i] != whole.shape[i]]
        if n_ranks == 1 or whole.dim() == 1:
            assert not narrower
            assert all(same_bits(part, whole) for part in parts)
        else:
            assert len(narrower) == 1
            assert same_bits(torch.cat(parts, narrower[0]), whole)


def test_each_of_two_ranks_holds_the_halves_that_fairscale_gives_it():
    """Literal shapes: a square matrix split along the wrong dimension joins up again unseen."""
    shape = Shape(dim=16, n_layers=1, n_heads=4, n_kv_heads=2, hidden=48, vocab=20)
    first, second = split_ranks(random_model(shape), 2)
    sizes = {
        "tok_embeddings.weight": (20, 8),
        "layers.0.attention.wq.weight": (8, 16),
        "layers.0.attention.wk.weight": (4, 16),
        "layers.0.attention.wv.weight": (4, 16),
        "layers.0.attention.wo.weight": (16, 8),
        "layers.0.feed_forward.w1.weight": (24, 16),
        "layers.0.feed_forward.w2.weight": (16, 24),
        "layers.0.feed_forward.w3.weight": (24, 16),
        "layers.0.attention_norm.weight": (16,),
        "layers.0.ffn_norm.weight": (16,),
        "norm.weight": (16,),
        "output.weight": (10, 16),
    }
    for rank in (first, second):
        assert {name: tuple(tensor.shape) for name, tensor in rank.items()} == sizes


def test_a_model_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        split_ranks(random_model(MHA), 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_torch_reads_every_layout_back(tmp_path, storage: Storage, n_ranks, dtype):
    state = random_model(GQA, dtype, special_values=True)
    save_checkpoint(tmp_path, GQA, state, n_ranks, storage=storage, rope="inner")
    assert sorted(path.name for path in tmp_path.glob("*")) == [
        *(f"consolidated.{rank:02d}.pth" for rank in range(n_ranks)),
        "params.json",
        "tokenizer.model",
    ]
    for index, rank in enumerate(split_ranks(state, n_ranks)):
        found = torch.load(tmp_path / f"consolidated.{index:02d}.pth", weights_only=True)
        assert all(same_bits(found[name], tensor) for name, tensor in rank.items())
        assert found.keys() - rank.keys() == {
            f"layers.{i}.attention.inner_attention.rope.freqs" for i in range(GQA.n_layers)
        }
        storages = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
        offsets = {tensor.storage_offset() for tensor in found.values()}
        matrix, norm = found["output.weight"], found["norm.weight"]
        assert norm.is_contiguous()
        if storage in {"flat", "shared-offset"}:
            assert len(storages) == 1
            assert (0 in offsets) == (storage == "flat")
            assert matrix.is_contiguous()
        else:
            assert len(storages) == len(found)
            assert matrix.is_contiguous() == (storage == "own")


def test_shared_storage_has_gaps_and_common_views(tmp_path):
    save_checkpoint(tmp_path, GQA, storage="shared-offset", rope="inner", pickle_protocol=4)
    # Protocol 4 is beyond weights_only.
    found = torch.load(tmp_path / "consolidated.00.pth", weights_only=False)
    spans = sorted(
        {
            (tensor.storage_offset(), tensor.numel(), tuple(tensor.shape))
            for tensor in found.values()
        }
    )
    assert len(spans) == len(found) - 1  # two layers, one rotary buffer
    assert all(start + size < later for (start, size, _), (later, _, _) in pairwise(spans))
    last = spans[-1][0] + spans[-1][1]
    assert last < found["norm.weight"].untyped_storage().size() // 2


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        (CODE_LLAMA_7B, (256, 1.0)),
        (CODE_LLAMA_13B, (256, 1.0)),
        (CODE_LLAMA_34B, (256, 1.0)),
        (CODE_LLAMA_70B, (4096, 1.3)),
        (GQA, (176, 1.0)),
    ],
)
def test_the_feed_forward_rule_is_metas_for_the_released_sizes(shape, rule):
    assert feed_forward_rule(shape) == rule


def test_params_json_is_spelled_as_each_release_spelled_it():
    """The three strings are byte-exact copies or, for Code Llama, have its keys."""
    llama_7b = Shape(4096, 32, 32, 32, 11008, 32000)
    llama_70b = Shape(8192, 80, 64, 8, 28672, 32000)
    assert params_json(llama_7b, "llama1") == (
        '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32,'
        ' "norm_eps": 1e-06, "vocab_size": -1}'
    )
    assert params_json(llama_70b, "llama2") == (
        '{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64,'
        ' "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}\n'
    )
    assert json.loads(params_json(CODE_LLAMA_34B)) == {
        "dim": 8192,
        "n_layers": 48,
        "n_heads": 64,
        "n_kv_heads": 8,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5,
        "rope_theta": 1000000,
    }
    changed = json.loads(params_json(MHA, overrides={"rope_theta": ABSENT, "vocab_size": 7}))
    assert "rope_theta" not in changed
    assert changed["vocab_size"] == 7


@pytest.mark.parametrize("n_pieces", [300, 301, 320, 32016])
def test_sentencepiece_reads_a_tokenizer_of_exactly_that_size(n_pieces):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=tokenizer_model(n_pieces))
    assert processor.get_piece_size() == n_pieces
    assert len({processor.id_to_piece(i) for i in range(n_pieces)}) == n_pieces
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    assert processor.pad_id() == -1
    text = "def f(x):\n    return  'é' + x  # 123"
    assert processor.decode(processor.encode(text)) == text
    assert processor.encode(text)[0] >= 259  # a merged piece, no byte


def test_a_tokenizer_too_small_for_its_bytes_is_refused():
    with pytest.raises(ValueError, match="299"):
        tokenizer_model(299)


def test_a_sparse_checkpoint_has_its_true_size_and_no_two_equal_ranks(tmp_path):
    shape = Shape(dim=1024, n_layers=2, n_heads=8, n_kv_heads=4, hidden=2816, vocab=32000)
    write_sparse_checkpoint(tmp_path, shape, n_ranks=2)
    plain = sum(torch.Size(size).numel() for size in meta_shapes(shape).values())
    ids = set()
    for index, (path, rank) in enumerate(
        zip(sorted(tmp_path.glob("*.pth")), split_ranks(meta_tensors(shape), 2), strict=True)
    ):
        assert path.name == f"consolidated.{index:02d}.pth"
        assert plain < path.stat().st_size < 1.1 * plain  # half the tensors, two bytes each
        assert path.stat().st_blocks * 512 < path.stat().st_size / 10
        found = torch.load(path, weights_only=True, mmap=True)
        assert found["rope.freqs"].shape == (shape.head_dim // 2,)
        assert {name: found[name].shape for name in rank} == {
            name: tensor.shape for name, tensor in rank.items()
        }
        assert not found["output.weight"].any()
        with zipfile.ZipFile(path) as archive:
            assert all(entry.CRC for entry in archive.infolist())
            assert archive.testzip() is None
        ids.add(torch._C.PyTorchFileReader(str(path)).serialization_id())
    assert len(ids) == 2


def meta_tensors(shape: Shape) -> State:
    return {name: torch.empty(size, dtype=torch.bool) for name, size in meta_shapes(shape).items()}
