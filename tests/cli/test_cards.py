"""The model card that the command line writes, keeps or leaves alone."""

from __future__ import annotations

import json

import torch

from tests.cli.running import run
from tests.witness.checkpoints import GQA, MHA, random_model, save_checkpoint


def test_a_model_card_says_what_the_folder_holds(tmp_path):
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 5), n_ranks=2)
    result = run("--input_dir", tmp_path / "in", "--model_card", "--variant", "instruct")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "in-hf" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    # 2 x 320 x 64, twice (2 x 64 x 64 + 2 x 32 x 64 + 3 x 176 x 64 + 2 x 64), and 64 of the norm.
    assert "| parameters | 133,440 |" in card
    assert "| base model | not a released model |" in card
    assert "| weights | bfloat16, bit for bit the checkpoint's |" in card
    assert "| vocabulary | 320 |" in card
    assert "| converted from | 2 x `consolidated.NN.pth` |" in card
    assert "AutoTokenizer.from_pretrained" in card
    assert "apply_chat_template" in card
    recorded = json.loads((tmp_path / "in-hf" / "conversion.json").read_bytes())
    assert "README.md" not in recorded["files"], "people edit it"
    assert run("verify", "--output_dir", tmp_path / "in-hf").exit_code == 0


def test_a_model_card_of_cast_weights_without_a_tokenizer_says_so(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.float32, 5), tokenizer=False)
    result = run(
        "--input_dir", tmp_path / "in", "--model_card", "--skip_tokenizer", "--dtype", "bf16"
    )
    assert result.exit_code == 0, result.output
    card = (tmp_path / "in-hf" / "README.md").read_text(encoding="utf-8")
    assert "| weights | bfloat16, cast from float32 |" in card
    assert "AutoTokenizer" not in card
    assert "apply_chat_template" not in card


def test_no_model_card_is_written_unasked_and_an_own_readme_is_left_alone(checkpoint):
    output = checkpoint.with_name("CodeLlama-7b-hf")
    assert run("--input_dir", checkpoint).exit_code == 0
    assert not (output / "README.md").exists()
    (output / "README.md").write_text("mine")
    assert run("--input_dir", checkpoint, "--overwrite").exit_code == 0
    assert (output / "README.md").read_text() == "mine"


def test_a_card_replaces_a_card_and_never_a_readme_of_ones_own(checkpoint, tmp_path):
    """A README.md that somebody had written was gone after `--overwrite --model_card`, exit 0."""
    again = ["convert", checkpoint, tmp_path / "out", "--overwrite", "--model_card"]
    assert run(*again).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_bytes()
    own = b"my own words about codellama-convert\n"
    (tmp_path / "out" / "README.md").write_bytes(own)
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    refused = run(*again, "--dtype", "float16")
    assert refused.exit_code == 1
    assert (
        "holds 'README.md': not the model card of a conversion, and --overwrite does not remove it"
        in refused.stderr
    )
    assert "move it away, or leave out --model_card" in refused.stderr
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == before
    assert run(*again[:-1], "--dtype", "float16").exit_code == 0, "without a card it stays"
    assert (tmp_path / "out" / "README.md").read_bytes() == own
    (tmp_path / "out" / "README.md").write_bytes(b"# edited\n" + card)
    assert run(*again).exit_code == 0
    assert (tmp_path / "out" / "README.md").read_bytes() == card


def test_a_card_of_an_earlier_conversion_is_told(checkpoint, tmp_path):
    """It said bfloat16 beside float16 weights; it is kept, since it may have been edited."""
    both = ("--input_dir", checkpoint, "--output_dir", tmp_path / "out", "--overwrite")
    assert "earlier" not in run(*both, "--model_card").stderr
    card = (tmp_path / "out" / "README.md").read_bytes()
    again = run(*both, "--dtype", "float16")
    told = "note: README.md comes from an earlier conversion; --model_card replaces it"
    assert told in again.stderr.splitlines()
    assert (tmp_path / "out" / "README.md").read_bytes() == card
    assert "earlier" not in run(*both, "--dtype", "float16", "--model_card").stderr
    (tmp_path / "out" / "README.md").write_text("my own words about codellama-convert\n")
    assert "earlier" not in run(*both).stderr


def test_a_tokenizer_alone_gets_no_model_card(checkpoint):
    result = run("--input_dir", checkpoint, "--model_size", "tokenizer_only", "--model_card")
    assert result.exit_code == 2
    assert "model_size tokenizer_only and model_card contradict each other" in result.stderr
