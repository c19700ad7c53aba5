"""Whatever the model, the mistakes that loaders of ranks take without a word are found in its ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from codellama_convert import reverse_checkpoint
from codellama_convert.plan.ranks.job import ReverseJob, plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.ranks.random_models import Model, models, write_hugging_face, write_meta
from tests.outputs import content
from tests.verify.damage import RECORD, told
from tests.witness.checkpoints import half_split_rows, int_dtype, rope_freqs
from tests.witness.ranks import join_ranks

WK, EMBEDDING, NORM = "layers.0.attention.wk.weight", "tok_embeddings.weight", "norm.weight"
Ranks = list[dict[str, torch.Tensor]]


def swap_two(ranks: Ranks, model: Model) -> None:
    del model
    ranks[0], ranks[-1] = ranks[-1], ranks[0]


def reorder_keys_with_n_heads(ranks: Ranks, model: Model) -> None:
    """Bring the rows of the keys back as if there were as many heads of them as of queries."""
    shape = model.shape
    n_rows = shape.kv_dim // shape.n_heads
    assume(n_rows and n_rows % 2 == 0 and shape.kv_dim % shape.n_heads == 0)
    hugging_face = join_ranks(ranks)[WK][half_split_rows(shape.n_kv_heads, shape.head_dim)]
    wrong = torch.empty_like(hugging_face)
    wrong[half_split_rows(shape.n_heads, n_rows)] = hugging_face
    for rank, part in zip(ranks, wrong.chunk(len(ranks), 0), strict=True):
        rank[WK] = part.clone()


def split_embedding_by_rows(ranks: Ranks, model: Model) -> None:
    del model
    for rank, part in zip(ranks, join_ranks(ranks)[EMBEDDING].chunk(len(ranks), 0), strict=True):
        rank[EMBEDDING] = part.clone()


def compute_frequencies_without_theta(ranks: Ranks, model: Model) -> None:
    for rank in ranks:
        rank["rope.freqs"] = rope_freqs(model.shape, rank[NORM].dtype)


def change_one_norm(ranks: Ranks, model: Model) -> None:
    bits = ranks[-1][NORM].view(int_dtype(ranks[-1][NORM].dtype))
    bits[model.seed % len(bits)] ^= 1


def leave_one_tensor_out(ranks: Ranks, model: Model) -> None:
    last = ranks[-1]
    # Ranks without frequencies are right too, where no record says that they had some.
    names = sorted(last.keys() - {"rope.freqs"})
    last.pop(names[model.seed % len(names)])


def write_first_norm_twice(ranks: Ranks, model: Model) -> None:
    """Give a norm of one layer to another tensor of its shape."""
    del model
    ranks[-1]["layers.0.ffn_norm.weight"] = ranks[-1]["layers.0.attention_norm.weight"].clone()


IN_RANKS = (
    swap_two, reorder_keys_with_n_heads, split_embedding_by_rows,
    compute_frequencies_without_theta, change_one_norm, leave_one_tensor_out, write_first_norm_twice,
)  # fmt: skip


def write_ranks(folder: Path, model: Model, *, from_meta: bool) -> tuple[Path, ReverseJob]:
    if from_meta:
        source = write_meta(folder / "in", model, "own", "top")
    else:
        source = write_hugging_face(folder / "in", model, 2)
    options = ReverseOptions(n_ranks=model.n_after, skip_tokenizer=True, torch_layout="2.13")
    reverse_checkpoint(source, folder / "out", options=options)
    return folder / "out", plan_reverse(source, options)


def require_found(output: Path, job: ReverseJob, before: dict[str, bytes]) -> None:
    """Find a mistake with the source, with the record, and with the source alone."""
    assume(content(output) != before)  # in such a model it is not a mistake
    assert told(output, job)
    assert told(output)
    (output / RECORD).unlink()
    assert told(output, job)


few = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("mistake", IN_RANKS)
@few
@given(model=models(), from_meta=st.booleans())
def test_a_mistake_in_the_ranks_of_any_model_is_found(
    tmp_path_factory, mistake: Callable[[Ranks, Model], None], model, from_meta
):
    folder = tmp_path_factory.mktemp("mistake")
    output, job = write_ranks(folder, model, from_meta=from_meta)
    assert told(output, job) == told(output) == []
    paths = sorted(output.glob("*.pth"))
    before = content(output)
    ranks = [torch.load(path, weights_only=True) for path in paths]
    for rank, path in zip(ranks, paths, strict=True):
        torch.save(rank, path)
    assert content(output) == before, "the control: saved again by torch, they are the same"
    mistake(ranks, model)
    for rank, path in zip(ranks, paths, strict=True):
        torch.save(rank, path)
    require_found(output, job, before)
    shutil.rmtree(folder)


@few
@given(model=models(), from_meta=st.booleans())
def test_a_theta_that_is_dropped_is_found(tmp_path_factory, model, from_meta):
    folder = tmp_path_factory.mktemp("theta")
    output, job = write_ranks(folder, model, from_meta=from_meta)
    before = content(output)
    params = json.loads(before["params.json"])
    (output / "params.json").write_text(json.dumps(params) + "\n")
    assert content(output) == before, "the control: spelled again, it is the same"
    params.pop("rope_theta", None)
    (output / "params.json").write_text(json.dumps(params) + "\n")
    require_found(output, job, before)
    shutil.rmtree(folder)
