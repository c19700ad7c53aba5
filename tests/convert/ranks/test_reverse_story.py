"""Real weights on their way back: Meta's forward pass tells the story from the ranks, to the letter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint, reverse_checkpoint
from codellama_convert.convert import transfer
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.witness.checkpoints import Shape, State, same_bits
from tests.witness.meta_forward import meta_logits
from tests.witness.ranks import join_ranks

SHARED = Path(__file__).resolve().parents[4] / "shared"
TOOL = SHARED / "tools" / "build_stories260k.py"
pytestmark = pytest.mark.skipif(
    not TOOL.exists(), reason="the trained weights of ../shared are not in this clone"
)
SHAPE = Shape(dim=64, n_layers=5, n_heads=8, n_kv_heads=4, hidden=172, vocab=512)
N_STEPS = 256


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the true weights, and a Hugging Face folder of it."""
    top = tmp_path_factory.mktemp("stories")
    subprocess.run([sys.executable, TOOL, top / "meta", "--shards", "2"], check=True)
    convert_checkpoint(top / "meta", top / "hf")
    return top


def load(folder: Path) -> list[State]:
    """Load the ranks of a folder as Meta's code does."""
    return [torch.load(path, weights_only=True, mmap=True) for path in sorted(folder.glob("*.pth"))]


@torch.no_grad()
def tell(folder: Path, n_steps: int = N_STEPS) -> str:
    """Decode greedily from <s>, with the numbers that params.json says."""
    from sentencepiece import SentencePieceProcessor

    state = join_ranks(load(folder))
    params = json.loads((folder / "params.json").read_text())
    ids = [1]
    for _ in range(n_steps):
        logits = meta_logits(
            state, SHAPE, torch.tensor(ids),
            rope_theta=params.get("rope_theta", 10000.0), norm_eps=params["norm_eps"],
        )  # fmt: skip
        ids.append(int(logits[-1].argmax()))
    text: str = SentencePieceProcessor(str(folder / "tokenizer.model")).decode(ids)
    return text.strip()


def test_the_story_is_told_to_the_letter_from_one_two_and_four_ranks(
    stories: Path, tmp_path: Path
) -> None:
    folders = {n: tmp_path / str(n) for n in (1, 2, 4)}
    for n_ranks, folder in folders.items():
        reverse_checkpoint(stories / "hf", folder, options=ReverseOptions(n_ranks=n_ranks))
        assert len(load(folder)) == n_ranks
    whole = join_ranks(load(stories / "meta"))
    for folder in folders.values():
        joined = join_ranks(load(folder))
        assert all(same_bits(joined[name], tensor) for name, tensor in whole.items())
        assert joined.keys() == whole.keys()
    told = (SHARED / "data" / "stories260K" / "expected_greedy.txt").read_text().strip()
    assert tell(folders[4]) == told  # the others are the same numbers


@pytest.mark.parametrize("mistake", ["not reordered", "reordered twice"])
def test_wrongly_reordered_rows_tell_another_story(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    real = transfer.to_interleaved
    wrong = {
        "not reordered": lambda rows, head_dim: rows.reshape(real(rows, head_dim).shape),
        "reordered twice": lambda rows, head_dim: real(
            real(rows, head_dim).reshape(rows.shape), head_dim
        ),
    }
    monkeypatch.setattr(transfer, "to_interleaved", wrong[mistake])
    reverse_checkpoint(stories / "hf", tmp_path / "out", options=ReverseOptions(n_ranks=2))
    told = (SHARED / "data" / "stories260K" / "expected_greedy.txt").read_text().strip()
    assert not told.startswith(tell(tmp_path / "out", 24))
