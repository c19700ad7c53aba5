"""The model card as a model hub and a reader meet it; tests/cli/test_cards.py has the option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from codellama_convert import Options, plan_conversion
from codellama_convert.choices import Flavor
from tests.witness.checkpoints import (
    CODE_LLAMA_7B,
    CODE_LLAMA_70B,
    GQA,
    Shape,
    save_checkpoint,
)
from tests.witness.llama3_ranks import LLAMA_3_1B, LLAMA_3_8B
from tests.witness.sparse import write_sparse_checkpoint, write_sparse_llama_3

TINY = Path(__file__).parents[2] / "examples" / "tiny-codellama"


def card_of(folder, flavor: Flavor | None = None, *, skip_tokenizer: bool = True) -> str:
    options = Options(flavor=flavor, skip_tokenizer=skip_tokenizer)
    card = plan_conversion(folder, options).model_card()
    assert card is not None
    return card.decode()


@pytest.mark.parametrize(
    ("name", "shape", "ranks", "title", "head"),
    [
        ("CodeLlama-7b-Instruct", CODE_LLAMA_7B, 1, "Code Llama 7B Instruct",
         {"license": "llama2", "language": ["code"], "tags": ["llama", "llama-2"]}),
        ("CodeLlama-70b", CODE_LLAMA_70B, 8, "Code Llama 70B",
         {"license": "llama2", "language": ["code"], "tags": ["llama", "llama-2"]}),
        ("tiny", GQA, 1, "A converted Llama checkpoint", {"tags": ["llama"]}),
    ],
)  # fmt: skip
def test_a_hub_reads_the_licence_and_the_tags(
    tmp_path, name: str, shape: Shape, ranks: int, title: str, head: dict[str, object]
):
    from huggingface_hub import ModelCard

    if shape is GQA:
        save_checkpoint(tmp_path / name, shape)
    else:
        write_sparse_checkpoint(tmp_path / name, shape, ranks, tokenizer=False)
    card = card_of(tmp_path / name)
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", **head,
    }  # fmt: skip
    assert f"\n# {title}\n" in card


@pytest.mark.parametrize(
    ("name", "shape", "head", "theta"),
    [
        ("Llama3.1-8B-Instruct", LLAMA_3_8B, {"license": "llama3.1", "tags": ["llama", "llama-3"]},
         "500000, scaled by 8 as Llama 3.1 does it"),
        ("Llama3.2-1B", LLAMA_3_1B, {"license": "llama3.2", "tags": ["llama", "llama-3"]},
         "500000, scaled by 32 as Llama 3.1 does it"),
        ("Llama-Guard-3-1B", LLAMA_3_1B, {"tags": ["llama"]},
         "500000, scaled by 8 as Llama 3.1 does it (a guess: the factor is not known)"),
    ],
)  # fmt: skip
def test_the_card_of_llama_3_names_its_licence_and_its_scaling(
    tmp_path, name: str, shape: Shape, head: dict[str, object], theta: str
):
    from huggingface_hub import ModelCard

    write_sparse_llama_3(tmp_path / name, shape, 1, tied=name == "Llama3.2-1B")
    card = card_of(tmp_path / name)
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", **head,
    }  # fmt: skip
    assert f"| rope_theta | {theta} |" in card


def test_a_context_that_is_not_known_is_called_a_guess(tmp_path):
    save_checkpoint(tmp_path / "tiny", GQA)
    assert re.search(r"\| context \| \d+ tokens \(a guess", card_of(tmp_path / "tiny"))
    options = Options(max_position_embeddings=4321, skip_tokenizer=True)
    told = plan_conversion(tmp_path / "tiny", options).model_card()
    assert told is not None
    assert "| context | 4321 tokens |" in told.decode()


def test_the_code_of_a_card_is_python():
    card = card_of(TINY, "instruct", skip_tokenizer=False)
    found = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(found) == 2
    for code in found:
        compile(code, "README.md", "exec")
    assert r"return <FILL_ME>\n" in found[1]
    assert "apply_chat_template" in card
    assert '`dtype="auto"` loads bfloat16' in card
    plain = card_of(TINY, "python")
    assert "FILL_ME" not in plain
    assert "apply_chat_template" not in plain
