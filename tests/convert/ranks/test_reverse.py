"""From a Hugging Face folder to Meta's ranks, and from ranks to another number of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint, reverse_checkpoint, verify_output
from codellama_convert.convert.run import run
from codellama_convert.errors import ConfigError, OutputError, TokenizerError
from codellama_convert.plan.options import Options
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.run_options import RunOptions
from tests.outputs import content
from tests.refusals import refused
from tests.witness.checkpoints import (
    Shape,
    random_model,
    rope_freqs,
    same_bits,
    save_checkpoint,
    tokenizer_model,
)
from tests.witness.ranks import in_metas_order

# Eight key and value heads, so that eight ranks have one each; none is equal to another number.
SHAPE = Shape(dim=128, n_layers=2, n_heads=16, n_kv_heads=8, hidden=192, vocab=640)
COUNTS = (1, 2, 4, 8)
ALONE = ReverseOptions(skip_tokenizer=True)


def save_split(folder: Path, state: dict[str, torch.Tensor], n_ranks: int) -> None:
    """Save a model as torch does, in Meta's order; the split is the witness's own."""
    save_checkpoint(folder, SHAPE, state, n_ranks=n_ranks)
    for path in sorted(folder.glob("consolidated.*.pth")):
        loaded = torch.load(path, weights_only=True)
        loaded["rope.freqs"] = rope_freqs(SHAPE, torch.bfloat16, theta=1e6)  # as params.json says
        torch.save(in_metas_order(loaded), path)


def ranks_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.pth"))}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """One model, split by the witness over each number of ranks and saved by torch."""
    top = tmp_path_factory.mktemp("splits")
    state = random_model(SHAPE, torch.bfloat16, seed=5)
    for n_ranks in COUNTS:
        save_split(top / str(n_ranks), state, n_ranks)
    return top


@pytest.mark.parametrize(("n_before", "n_after"), [*product(COUNTS, repeat=2)])
def test_any_number_of_ranks_becomes_any_other_as_torch_saves_it(
    splits, tmp_path, n_before, n_after
):
    options = ReverseOptions(n_ranks=n_after, torch_layout="2.13", skip_tokenizer=True)
    run(plan_reverse(splits / str(n_before), options), tmp_path / "out")
    assert ranks_of(tmp_path / "out") == ranks_of(splits / str(n_after))
    assert len(ranks_of(tmp_path / "out")) == n_after


@pytest.mark.parametrize("n_ranks", COUNTS)
def test_ranks_and_back_are_the_same_folder(splits, tmp_path, n_ranks):
    convert_checkpoint(splits / "2", tmp_path / "hf", options=Options(skip_tokenizer=True))
    options = ReverseOptions(n_ranks=n_ranks, torch_layout="2.13", skip_tokenizer=True)
    run(plan_reverse(tmp_path / "hf", options), tmp_path / "ranks")
    assert ranks_of(tmp_path / "ranks") == ranks_of(splits / str(n_ranks))
    convert_checkpoint(tmp_path / "ranks", tmp_path / "again", options=Options(skip_tokenizer=True))
    first, again = content(tmp_path / "hf"), content(tmp_path / "again")
    # It says of which ranks a folder was made; two are those that the first one was made of.
    is_equal = first.pop("conversion.json") == again.pop("conversion.json")
    assert is_equal is (n_ranks == 2)
    assert again == first


# --- what is asked, and what is refused -----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(splits, tmp_path_factory):
    """The model as a Hugging Face folder, its tokenizer too."""
    made = tmp_path_factory.mktemp("hf") / "tiny-hf"
    convert_checkpoint(splits / "1", made)
    return made


def test_what_is_written_beside_the_ranks(folder, splits, tmp_path):
    """As for a folder of any writer: with a record, params.json would be the original's."""
    bare = shutil.copytree(
        folder, tmp_path / "hf", ignore=shutil.ignore_patterns("conversion.json")
    )
    run(plan_reverse(bare), tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == [
        "consolidated.00.pth", "conversion.json", "params.json", "tokenizer.model"
    ]  # fmt: skip
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    assert params == {
        "dim": 128, "multiple_of": 64, "ffn_dim_multiplier": 0.5, "n_heads": 16, "n_kv_heads": 8,
        "n_layers": 2, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 640,
    }  # fmt: skip
    tokenizer = (splits / "1" / "tokenizer.model").read_bytes()
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer


def test_without_the_frequencies_all_else_is_the_same(folder, tmp_path):
    reverse_checkpoint(folder, tmp_path / "without", options=ReverseOptions(rope_freqs=False))
    run(plan_reverse(folder), tmp_path / "with")
    without, whole = (
        torch.load(tmp_path / one / "consolidated.00.pth", weights_only=True)
        for one in ("without", "with")
    )
    frequencies = whole.pop("rope.freqs")
    assert torch.equal(frequencies, rope_freqs(SHAPE, torch.bfloat16, theta=1e6))
    assert not torch.equal(frequencies, rope_freqs(SHAPE, torch.bfloat16))  # of theta 10000
    assert list(without) == list(whole)
    assert all(same_bits(without[name], whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_cast_is_torchs(folder, splits, tmp_path, dtype):
    run(plan_reverse(folder, ReverseOptions(n_ranks=2, dtype=dtype)), tmp_path / "out")
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        found = torch.load(tmp_path / "out" / name, weights_only=True)
        expected = torch.load(splits / "2" / name, weights_only=True)
        for tensor, value in expected.items():
            if tensor != "rope.freqs":  # made in the dtype itself
                assert same_bits(found[tensor], value.to(getattr(torch, dtype))), tensor


@pytest.mark.parametrize(("n_ranks", "fact"), [(3, "8 key and value heads"), (16, "8 key and")])
def test_a_number_that_does_not_divide_is_refused_with_those_that_do(folder, n_ranks, fact):
    with refused(ConfigError, f"{fact}", f"{n_ranks} ranks", "--ranks may be 1, 2, 4 or 8"):
        plan_reverse(folder, ReverseOptions(n_ranks=n_ranks))


def test_a_tied_head_is_written_as_a_matrix_of_its_own(splits, tmp_path):
    """Meta's code has no tied heads: without output.weight it computes with what is in memory."""
    state = random_model(SHAPE, torch.bfloat16, seed=6)
    state["output.weight"] = state["tok_embeddings.weight"].clone()
    save_checkpoint(tmp_path / "untied", SHAPE, state)
    del state["output.weight"]
    save_checkpoint(tmp_path / "tied", SHAPE, state)
    convert_checkpoint(tmp_path / "tied", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"] is True
    for source in ("hf", "tied"):
        run(plan_reverse(tmp_path / source, ReverseOptions(n_ranks=4)), tmp_path / f"from-{source}")
        found = [
            torch.load(tmp_path / f"from-{source}" / f"consolidated.{n:02d}.pth", weights_only=True)
            for n in range(4)
        ]
        whole = torch.load(tmp_path / "untied" / "consolidated.00.pth", weights_only=True)
        output = torch.cat([rank["output.weight"] for rank in found], 0)
        embedding = torch.cat([rank["tok_embeddings.weight"] for rank in found], 1)
        assert same_bits(output, whole["output.weight"])
        assert same_bits(embedding, whole["tok_embeddings.weight"])


def test_rows_behind_the_pieces_are_left_out_only_if_that_is_asked_for(splits, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "padded")
    (tmp_path / "padded" / "tokenizer.model").write_bytes(tokenizer_model(600))
    with refused(TokenizerError, "600 pieces", "640 rows", "--vocab_rows 600"):
        plan_reverse(tmp_path / "padded")
    run(plan_reverse(tmp_path / "padded", ReverseOptions(vocab_rows=600)), tmp_path / "out")
    found = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True)
    whole = torch.load(splits / "1" / "consolidated.00.pth", weights_only=True)
    for name in ("tok_embeddings.weight", "output.weight"):
        assert same_bits(found[name], whole[name][:600]), name
    with refused(TokenizerError, "600 pieces", "320 rows"):
        plan_reverse(tmp_path / "padded", ReverseOptions(vocab_rows=320))


def test_a_folder_without_a_tokenizer_is_refused_with_what_to_do(folder, splits, tmp_path):
    shutil.copytree(folder, tmp_path / "alone")
    (tmp_path / "alone" / "tokenizer.model").unlink()
    with refused(TokenizerError, "no tokenizer.model", "--tokenizer_model"):
        plan_reverse(tmp_path / "alone")
    named = ReverseOptions(tokenizer_model=splits / "1" / "tokenizer.model")
    run(plan_reverse(tmp_path / "alone", named), tmp_path / "named")
    run(plan_reverse(tmp_path / "alone", ALONE), tmp_path / "skipped")
    assert ranks_of(tmp_path / "named") == ranks_of(tmp_path / "skipped")


def test_ranks_of_an_older_result_go_and_other_pth_files_are_refused(folder, tmp_path):
    """Meta's code counts every *.pth: one too many, and it does not start."""
    run(plan_reverse(folder, ReverseOptions(n_ranks=4)), tmp_path / "out")
    with refused(OutputError, "not empty", "--overwrite"):
        run(plan_reverse(folder, ReverseOptions(n_ranks=2)), tmp_path / "out")
    (tmp_path / "out" / "optimizer.pth").write_bytes(b"x")
    with refused(OutputError, "optimizer.pth", "loaders would use it"):
        run(plan_reverse(folder), tmp_path / "out", RunOptions(overwrite=True))
    (tmp_path / "out" / "optimizer.pth").unlink()
    run(
        plan_reverse(folder, ReverseOptions(n_ranks=2)),
        tmp_path / "out",
        RunOptions(overwrite=True),
    )
    assert sorted(ranks_of(tmp_path / "out")) == ["consolidated.00.pth", "consolidated.01.pth"]


def test_a_checklist_on_request_is_one_that_md5sum_accepts(folder, tmp_path):
    options = ReverseOptions(n_ranks=2, checklist=True)
    job = plan_reverse(folder, options)
    run(job, tmp_path / "out")
    listed = (tmp_path / "out" / "checklist.chk").read_text().splitlines()
    assert [line.split("  ")[1] for line in listed] == [
        "consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"
    ]  # fmt: skip
    for line in listed:
        md5, name = line.split("  ")
        assert hashlib.md5((tmp_path / "out" / name).read_bytes()).hexdigest() == md5
    assert verify_output(tmp_path / "out", job).problems == ()
    assert verify_output(tmp_path / "out").problems == ()
    text = (tmp_path / "out" / "checklist.chk").read_text()
    (tmp_path / "out" / "checklist.chk").write_text(text.replace(listed[0][0], "x", 1))
    assert any("checklist.chk" in one for one in verify_output(tmp_path / "out", job).problems)
    assert any("checklist.chk" in one for one in verify_output(tmp_path / "out").problems)


def test_ranks_are_not_mixed_with_a_hugging_face_model(folder, splits, tmp_path):
    """They stayed beside what replaced nothing, and the folder was both."""
    reverse_checkpoint(folder, tmp_path / "out", options=ReverseOptions(n_ranks=2))
    over = RunOptions(overwrite=True)
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        before = content(tmp_path / "out")
        with refused(OutputError, f"holds '{name}'", "loaders would use it", "move it away"):
            convert_checkpoint(splits / "1", tmp_path / "out", run_options=over)
        assert content(tmp_path / "out") == before
        (tmp_path / "out" / name).unlink()
    convert_checkpoint(splits / "1", tmp_path / "out", run_options=over)
    assert verify_output(tmp_path / "out").problems == ()


def test_a_hugging_face_model_is_not_mixed_with_ranks(folder, tmp_path):
    """Its config.json stayed beside the ranks, and each command took the folder for the other."""
    shutil.copytree(folder, tmp_path / "out")
    before = content(tmp_path / "out")
    with refused(OutputError, "holds 'config.json'", "loaders would use it"):
        run(plan_reverse(folder), tmp_path / "out", RunOptions(overwrite=True))
    assert content(tmp_path / "out") == before
