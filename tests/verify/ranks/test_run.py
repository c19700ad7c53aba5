"""What verify finds in ranks: each mistake that a writer can make is found and named.

Meta's loader takes whatever it is given, so what is not found here is found by nobody.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import convert_checkpoint, verify_output
from codellama_convert.convert.run import run
from codellama_convert.errors import VerifyError
from codellama_convert.model.asked import AskedRanks
from codellama_convert.plan.ranks.job import ReverseJob, plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.run_options import RunOptions
from tests.refusals import refused
from tests.verify.damage import told
from tests.verify.ranks.mistakes import (
    FIRST,
    LAST,
    N_RANKS,
    SHAPE,
    WK,
    WQ,
    change_one_norm,
    drop,
    leave_rows_in_halves,
    load,
    move_frequencies,
    negate_last,
    put,
    reorder_keys_with_n_heads,
    save,
    scatter_columns,
    split_embedding_by_rows,
    swap_gate_and_up,
    swap_two,
)
from tests.witness.checkpoints import random_model, save_checkpoint, split_ranks, tokenizer_model

# Small tiles: a tensor takes several, and each of them is compared.
TILED = partial(ReverseOptions, max_ram_bytes=80_000, workers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model in Hugging Face's format ("hf"), and ranks of it as torch 2.13 writes them ("out")."""
    folder = tmp_path_factory.mktemp("ranks")
    state = random_model(SHAPE, torch.bfloat16, seed=11)
    save_checkpoint(folder / "meta", SHAPE, state, n_ranks=2, tokenizer=tokenizer_model(320))
    convert_checkpoint(folder / "meta", folder / "hf")
    options = TILED(n_ranks=N_RANKS, torch_layout="2.13")
    run(plan_reverse(folder / "hf", options), folder / "out")
    return folder


@pytest.fixture(scope="module")
def job(place):
    return plan_reverse(place / "hf", TILED())


@pytest.fixture
def out(place, tmp_path):
    """The ranks without their record, so that the source alone tells what is wrong."""
    copied = Path(shutil.copytree(place / "out", tmp_path / "out"))
    (copied / "conversion.json").unlink()
    return copied


def test_the_control_what_torch_saves_again_unchanged_is_right(out, job):
    before = (out / FIRST).read_bytes()
    save(out, load(out))
    assert (out / FIRST).read_bytes() == before
    assert told(out, job) == []
    assert verify_output(out, job).n_tensors == 21


@pytest.mark.parametrize(
    ("damage", "file", "facts"),
    [
        (swap_two, FIRST, ["'tok_embeddings.weight' differs from 'model.embed_tokens.weight'"]),
        (reorder_keys_with_n_heads, FIRST, [f"{WK!r} differs", "self_attn.k_proj", "row 2,"]),
        (leave_rows_in_halves, FIRST, [f"{WQ!r} differs", "self_attn.q_proj", "row 1,"]),
        (split_embedding_by_rows, LAST, ["'tok_embeddings.weight' has shape (80, 64), expected (320, 16)"]),
        (scatter_columns, FIRST, ["attention.wo.weight' differs", "row 0, column 1:"]),
        (change_one_norm, LAST, ["layers.1.ffn_norm.weight' differs", "row 63, column 0:"]),
        (move_frequencies, LAST, ["'rope.freqs' has bits", "at 1,", "rope_theta 1000000.0"]),
        (swap_gate_and_up, "consolidated.02.pth", ["feed_forward.w1.weight' differs", "row 48,"]),
        (drop(1, WQ), "consolidated.01.pth", [f"{WQ!r} is missing"]),
        (drop(2, "norm.weight"), "consolidated.02.pth", ["'norm.weight' is missing"]),
        (drop(3, "rope.freqs"), LAST, ["'rope.freqs' is missing"]),
        (put(3, "extra.weight", lambda _: torch.zeros(2)), LAST, ["'extra.weight' does not belong"]),
        (put(3, WQ, lambda t: t.float()), LAST, [f"{WQ!r} is float32, expected bfloat16"]),
        (put(3, WQ, lambda t: t.half()), LAST, [f"{WQ!r} is float16, expected bfloat16"]),
        (put(3, WQ, lambda t: t[:8].clone()), LAST, [f"{WQ!r} has shape (8, 64), expected (16, 64)"]),
        (put(3, WQ, lambda t: t.T.contiguous().T), LAST, [f"{WQ!r} is not stored in order"]),
        (put(3, WQ, negate_last), LAST, [f"{WQ!r} differs", "row 63, column 63:"]),
        (put(3, "output.weight", negate_last), LAST, ["'output.weight' differs", "row 319, column 63:"]),
        (put(3, "tok_embeddings.weight", negate_last), LAST, ["embed_tokens", "row 319, column 63:"]),
        (put(3, WQ, lambda t: torch.cat([t, t])[:16]), LAST, ["not laid out as PyTorch 2.13 writes it"]),
        (put(3, "norm.weight", lambda _: 1.5), LAST, ["'norm.weight' is"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_ranks_is_named_by_file_and_tensor(out, job, damage, file, facts):
    ranks = load(out)
    damage(ranks)
    save(out, ranks)
    found = told(out, job)
    assert any(
        line.startswith(f"{file}: ") and all(fact in line for fact in facts) for line in found
    ), found


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (lambda c: c.pop("rope_theta"), ["rope_theta is 10000.0, expected 1000000.0"]),
        (lambda c: c.update(rope_theta=1e5), ["rope_theta is 100000.0, expected 1000000.0"]),
        (lambda c: c.update(norm_eps=1e-6), ["norm_eps is 1e-06, expected 1e-05"]),
        (lambda c: c.update(n_layers=1), ["n_layers is 1, expected 2"]),
        (lambda c: c.update(n_heads=4), ["n_heads is 4, expected 8"]),
        (lambda c: c.pop("n_kv_heads"), ["n_kv_heads is 8, expected 4"]),
        (lambda c: c.update(dim=128), ["dim is 128, expected 64"]),
        (lambda c: c.update(multiple_of=64), ["width of the feed-forward network is"]),
        (lambda c: c.update(vocab_size=321), ["vocab_size is 321, expected 320"]),
        (lambda c: c.update(vocab_size=-1), ["vocab_size is null, expected 320"]),
        (lambda c: c.update(hidden_act="silu"), ["has 'hidden_act', which Meta's code does not know"]),
        (lambda c: c.update(hidden_dim=96), ["has 'hidden_dim', which Meta's code does not know"]),
    ],
)  # fmt: skip
def test_a_mistake_in_params_json_is_named(out, job, damage, facts):
    path = out / "params.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content) + "\n")
    assert told(out, job) == [], "the control"
    damage(content)
    path.write_text(json.dumps(content) + "\n")
    found = told(out, job)
    assert all(any(fact in line for line in found) for fact in facts), found
    assert all(line.startswith("params.json: ") for line in found)


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda o: (o / LAST).unlink(), f"{LAST}: is missing"),
        (lambda o: (o / LAST).write_bytes(b""), f"{LAST}: "),
        (lambda o: (o / "params.json").unlink(), "params.json: "),
        (lambda o: (o / "params.json").write_bytes(b"{}"), "params.json: "),
        (lambda o: (o / "tokenizer.model").unlink(), "tokenizer.model: "),
        (lambda o: (o / "tokenizer.model").write_bytes(tokenizer_model(319)), "tokenizer.model: is not"),
        (lambda o: shutil.copy(o / FIRST, o / "consolidated.04.pth"), "consolidated.04.pth is in the"),
        (lambda o: (o / "optimizer.pth").touch(), "optimizer.pth is in the folder"),
        (lambda o: (o / "checklist.chk").touch(), "checklist.chk is in the folder"),
    ],
)  # fmt: skip
def test_a_file_that_is_missing_or_too_many_is_named(out, job, damage, fact):
    (out / "LICENSE").touch()
    assert told(out, job) == [], "the control"
    damage(out)
    assert any(fact in line for line in told(out, job)), told(out, job)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (TILED(n_ranks=2), "split over 4 ranks, not over 2 as asked for"),
        (TILED(dtype="float16"), "the tensors are bfloat16, not float16 as asked for"),
        (TILED(rope_freqs=False), "'rope.freqs' does not belong to this model"),
        (TILED(skip_tokenizer=True), "tokenizer.model is in the folder"),
    ],
)
def test_a_job_that_contradicts_the_output_is_a_difference(place, tmp_path, options, fact):
    """With its record, which says what the conversion was asked for, and without one."""
    job = plan_reverse(place / "hf", options)
    found = told(place / "out", job)
    assert any(fact in line for line in found), found
    assert any(line.startswith("conversion.json: options: ") for line in found) or len(found) > 20
    shutil.copytree(place / "out", tmp_path / "out")
    (tmp_path / "out" / "conversion.json").unlink()
    assert any(fact in line for line in told(tmp_path / "out", job))


def test_what_a_user_says_of_the_output_is_compared_with_the_record(place, job):
    """A default that is said is no default: the layout 1.13 is a difference from 2.13."""
    assert told(place / "out", job) == told(place / "out") == []
    for with_job in (job, None):
        asked = AskedRanks(torch_layout="1.13")
        found = told(place / "out", with_job, asked=asked)
        assert 'conversion.json: options: torch_layout is "2.13", expected "1.13"' in found
        right = AskedRanks(torch_layout="2.13", ranks=4, dtype="bfloat16", vocab_rows=320)
        assert told(place / "out", with_job, asked=right) == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_a_rank_that_is_missing_or_unreadable_is_one_line(place, tmp_path, damage):
    """Beside the record, there was a line for each tensor, and then "... and 1 more"."""
    output = Path(shutil.copytree(place / "out", tmp_path / "out"))
    damage(output / LAST)
    (line,) = told(output, plan_reverse(place / "hf", TILED()))
    assert line.startswith(f"{LAST}: ")
    # Without the source, its size is one more.
    found = told(output)
    assert len(found) == (2 if (output / LAST).exists() else 1)
    assert all(LAST in line for line in found)


def test_a_damage_in_the_staged_ranks_is_found_before_anything_is_published(place, tmp_path):
    def check(job: ReverseJob, staged: Path, watch: Any) -> None:
        from codellama_convert.cli.steps import verify_staged

        verify_staged(job, staged, watch, hidden=True)
        content = bytearray((staged / FIRST).read_bytes())
        content[5000] ^= 1
        (staged / FIRST).write_bytes(content)
        verify_staged(job, staged, watch, hidden=True)

    job = plan_reverse(place / "hf", TILED(n_ranks=2))
    with refused(VerifyError, FIRST, "differs", "nothing was published"):
        run(job, tmp_path / "out", RunOptions(check_staged=check))
    assert not list((tmp_path / "out").glob("*.pth"))


def test_ranks_of_another_model_are_not_taken_for_those_of_this_one(place, tmp_path, job):
    state = random_model(SHAPE, torch.bfloat16, seed=12)
    tokenizer = tokenizer_model(320)
    save_checkpoint(tmp_path / "other", SHAPE, state, n_ranks=N_RANKS, tokenizer=tokenizer)
    assert len(split_ranks(state, N_RANKS)) == N_RANKS
    found = told(tmp_path / "other", job)
    assert any("differs from 'model.embed_tokens.weight'" in line for line in found), found
