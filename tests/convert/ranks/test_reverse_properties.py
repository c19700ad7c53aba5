"""Whatever the model, the ranks that are written are those of the witness, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codellama_convert import Options, convert_checkpoint, reverse_checkpoint, verify_output
from codellama_convert.convert import transfer
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.bits import assert_same_bits
from tests.convert.ranks.random_models import (
    DTYPES,
    Model,
    how,
    models,
    write_hugging_face,
    write_meta,
)
from tests.hugging_face.folders import write_folder
from tests.witness.checkpoints import (
    GQA,
    STORAGES,
    State,
    expected_state_dict,
    random_model,
    read_output,
    rope_freqs,
)
from tests.witness.ranks import expected_ranks, rank_differences, save_ranks

bounded = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def metas_model(params: dict[str, Any], n_pieces: int | None = None) -> tuple[int | None, ...]:
    """Compute the sizes as Meta's code does: ModelArgs, FeedForward.__init__, and the tokenizer."""
    hidden = int(2 * (4 * params["dim"]) / 3)
    hidden = int(params.get("ffn_dim_multiplier", 1) * hidden)
    unit = params["multiple_of"]
    return (
        params["dim"], params["n_layers"], params["n_heads"],
        params.get("n_kv_heads", params["n_heads"]), unit * ((hidden + unit - 1) // unit),
        params.get("vocab_size", n_pieces),
    )  # fmt: skip


def require_ranks(
    folder: Path, model: Model, ranks: list[State], *, layout: str, of_meta: bool = False
) -> None:
    """Compare all that was written: whole files where torch's own layout was asked for."""
    assert rank_differences(folder, ranks) == []
    if layout == "2.13":
        torchs = save_ranks(folder.parent / "torchs", ranks)
        for path in sorted(torchs.iterdir()):
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    params = json.loads((folder / "params.json").read_text())
    shape = model.shape
    assert metas_model(params, shape.vocab if of_meta else None) == (
        shape.dim, shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.hidden, shape.vocab
    )  # fmt: skip
    assert params.get("rope_theta", 10000) == model.theta


def reverse(source: Path, target: Path, model: Model, options: dict[str, Any]) -> None:
    """Write ranks, and look that verify finds nothing wrong with them."""
    asked = ReverseOptions(n_ranks=model.n_after, skip_tokenizer=True, **options)
    reverse_checkpoint(source, target, options=asked)
    assert verify_output(target, plan_reverse(source, asked)).problems == ()
    assert verify_output(target).problems == ()


@pytest.mark.parametrize("layout", ["1.13", "2.13"])
@bounded
@given(
    model=models(), n_files=st.sampled_from([1, 2, 5, 99]), tied=st.booleans(), data=st.data(),
    max_shard_bytes=st.sampled_from([1, 700, 5_000_000_000]),
)  # fmt: skip
def test_hugging_face_to_ranks_and_back(
    tmp_path_factory, layout, model, n_files, tied, data, max_shard_bytes
):
    folder = tmp_path_factory.mktemp("reverse")
    source = write_hugging_face(folder / "hf", model, n_files, tied=tied)
    reverse(source, folder / "ranks", model, data.draw(how(layout)))
    state = model.state
    if tied:  # Meta's code has no such thing: the matrix is there twice
        state["output.weight"] = state["tok_embeddings.weight"]
    ranks = expected_ranks(state, model.shape, model.n_after, theta=model.theta)
    require_ranks(folder / "ranks", model, ranks, layout=layout)
    options = Options(skip_tokenizer=True, max_shard_bytes=max_shard_bytes)
    convert_checkpoint(folder / "ranks", folder / "again", options=options)
    again = read_output(folder / "again")
    assert_same_bits(again, expected_state_dict(state, model.shape))
    if len(list(source.glob("*.safetensors"))) == 1 and max_shard_bytes > 700 and not tied:
        assert (folder / "again/model.safetensors").read_bytes() == (
            source / "model.safetensors"
        ).read_bytes()
    shutil.rmtree(folder)


@pytest.mark.parametrize("layout", ["1.13", "2.13"])
@bounded
@given(
    model=models(), storage=st.sampled_from(STORAGES), rope=st.sampled_from(["top", "inner", None]),
    data=st.data(),
)  # fmt: skip
def test_ranks_to_another_number_of_them(tmp_path_factory, layout, model, storage, rope, data):
    folder = tmp_path_factory.mktemp("ranks")
    source = write_meta(folder / "in", model, storage, rope)
    reverse(source, folder / "out", model, data.draw(how(layout)))
    ranks = expected_ranks(model.state, model.shape, model.n_after, theta=model.theta)
    if rope == "top":  # the source's own bytes, which the fixture has computed for 10000
        own = rope_freqs(model.shape, DTYPES[model.dtype])
        ranks = [{**rank, "rope.freqs": own} for rank in ranks]
    require_ranks(folder / "out", model, ranks, layout=layout, of_meta=True)
    shutil.rmtree(folder)


@bounded
@given(
    model=models(),
    wanted=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_mixed_dtypes_become_one_as_torch_casts_them(tmp_path_factory, model, wanted, seed, data):
    folder = tmp_path_factory.mktemp("mixed")
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor.to(list(DTYPES.values())[int(torch.randint(3, (), generator=generator))])
        for name, tensor in random_model(model.shape, torch.float32, model.seed).items()
    }
    tensors = {n: t.contiguous() for n, t in expected_state_dict(state, model.shape).items()}
    change = {"shape": model.shape, "rope_theta": model.theta, "torch_dtype": model.dtype}
    write_folder(folder / "hf", [tensors], **change)
    reverse(folder / "hf", folder / "ranks", model, {"dtype": wanted, **data.draw(how())})
    cast = {name: tensor.to(DTYPES[wanted]) for name, tensor in state.items()}
    ranks = expected_ranks(cast, model.shape, model.n_after, theta=model.theta)
    require_ranks(folder / "ranks", model, ranks, layout="2.13")
    shutil.rmtree(folder)


# --- the controls ---------------------------------------------------------------------------------

CONTROL = Model(GQA, 1, 2, "bfloat16", 1000000.0, 7)


def swapped(ranks: list[State]) -> list[State]:
    return ranks[::-1]


def a_tensor_missing(ranks: list[State]) -> list[State]:
    return [ranks[0], {n: t for n, t in ranks[1].items() if n != "layers.1.ffn_norm.weight"}]


def one_norm_changed(ranks: list[State]) -> list[State]:
    norm = ranks[1]["norm.weight"].clone()
    norm.view(torch.int16)[3] ^= 1
    return [ranks[0], {**ranks[1], "norm.weight": norm}]


def split_on_the_wrong_side(ranks: list[State]) -> list[State]:
    name = "tok_embeddings.weight"
    whole = torch.cat([rank[name] for rank in ranks], 1)
    halves = [half.clone() for half in whole.chunk(2, 0)]
    return [{**rank, name: half} for rank, half in zip(ranks, halves, strict=True)]


def without_theta(ranks: list[State]) -> list[State]:
    return [{**rank, "rope.freqs": rope_freqs(GQA, torch.bfloat16)} for rank in ranks]


def zero_for_minus_zero(ranks: list[State]) -> list[State]:
    changed = ranks[0]["output.weight"].clone()
    changed[(changed == 0) & changed.signbit()] = 0.0
    return [{**ranks[0], "output.weight": changed}, ranks[1]]


def in_another_order(ranks: list[State]) -> list[State]:
    return [dict(reversed(rank.items())) for rank in ranks]


def not_contiguous(ranks: list[State]) -> list[State]:
    name = "layers.0.attention.wo.weight"
    return [{**rank, name: rank[name].t().contiguous().t()} for rank in ranks]


@pytest.fixture(scope="module")
def right() -> list[State]:
    return expected_ranks(CONTROL.state, GQA, 2, theta=CONTROL.theta)


@pytest.mark.parametrize(
    "wrong",
    [
        swapped, a_tensor_missing, one_norm_changed, split_on_the_wrong_side, without_theta,
        zero_for_minus_zero, in_another_order, not_contiguous,
    ],
)  # fmt: skip
def test_the_comparison_sees_wrong_ranks(
    tmp_path: Path, right: list[State], wrong: Callable[[list[State]], list[State]]
) -> None:
    assert rank_differences(save_ranks(tmp_path / "right", right), right) == []
    assert rank_differences(save_ranks(tmp_path / "wrong", wrong(right)), right) != []
    assert rank_differences(save_ranks(tmp_path / "one", right[:1]), right) != []


@pytest.mark.parametrize("mistake", ["not reordered", "wk with the number of query heads"])
def test_the_comparison_sees_a_wrong_order_of_rotary_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: list[State], mistake: str
) -> None:
    source = write_hugging_face(tmp_path / "hf", CONTROL, 1)
    reverse(source, tmp_path / "right", CONTROL, {})
    assert rank_differences(tmp_path / "right", right) == []
    real = transfer.to_interleaved
    if mistake == "not reordered":
        monkeypatch.setattr(transfer, "to_interleaved", lambda rows, head_dim: rows)
    else:
        monkeypatch.setattr(
            transfer, "to_interleaved",
            lambda rows, head_dim: real(rows, head_dim // 2 if len(rows) < 32 else head_dim),
        )  # fmt: skip
    asked = ReverseOptions(n_ranks=CONTROL.n_after, skip_tokenizer=True)
    reverse_checkpoint(source, tmp_path / "wrong", options=asked)
    wrong = {"wq", "wk"} if mistake == "not reordered" else {"wk"}
    problems = verify_output(tmp_path / "wrong", plan_reverse(source, asked)).problems
    assert {re.findall(r"attention\.(w.)\.weight' differs", line)[0] for line in problems} == wrong
    found = {
        line.split(".weight")[0].rpartition(".")[2]
        for line in rank_differences(tmp_path / "wrong", right)
    }
    assert found == wrong
