"""The trained Code Llama in examples/ means the same after its conversion: it fills what it learned.

Random weights prove bytes. Here every wrong turn of a conversion that people have met is taken on
purpose, and each one makes the filling fail.
"""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.cli import main
from examples.infill import PROMPT, fill
from examples.infill import main as infill
from tests.checkpoints import half_split_rows
from tests.test_tiny_training import DOCUMENTED_MIDDLE, merged
from tests.vocabularies import model_bytes, write_folder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = EXAMPLES / "tiny-codellama"
N_HEADS, N_KV_HEADS, HEAD_DIM, N_LAYERS = 8, 2, 16, 3
PROJECTIONS = {"q_proj": N_HEADS, "k_proj": N_KV_HEADS}


@pytest.fixture(scope="module")
def training():
    """Import the training script the way it runs: with examples/ on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_tiny_codellama")


def convert(source: Path, target: Path) -> Path:
    result = CliRunner().invoke(main, ["--input_dir", str(source), "--output_dir", str(target)])
    assert result.exit_code == 0, result.output
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return convert(TINY, tmp_path_factory.mktemp("tiny") / "hf")


def load(folder: Path, dtype: str = "auto") -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def auto_tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)


def recipe_prompt(tokenizer: Any, prefix: str, suffix: str, *, suffix_first: bool) -> list[int]:
    """The README's recipe for AutoTokenizer, and its other order."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    pre, suf, mid = tokenizer.convert_tokens_to_ids(["▁<PRE>", "▁<SUF>", "▁<MID>"])
    before, after = encode(prefix), encode("☺" + suffix)[2:]
    if suffix_first:
        return [tokenizer.bos_token_id, pre, suf, *after, mid, *before]
    return [tokenizer.bos_token_id, pre, *before, suf, *after, mid]


def recipe_fill(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    end = tokenizer.convert_tokens_to_ids("▁<EOT>")
    stop = [tokenizer.eos_token_id, end]
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=200,
        eos_token_id=stop, pad_token_id=stop[0],
    )  # fmt: skip
    new = output[0, len(prompt) :].tolist()
    begin = tokenizer("☺", add_special_tokens=False)["input_ids"][1:]
    return tokenizer.decode(begin + new, skip_special_tokens=True)[1:]


def fill_all(model: Any, tokenizer: CodeLlamaTokenizer, fillings: Any, **order: bool) -> list[str]:
    """Fill every function in one batch, padded on the left."""
    prompts = [f"{one.prefix}<FILL_ME>{one.suffix}" for one in fillings]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, **order)
    stop = [tokenizer.eos_token_id, tokenizer.eot_id]
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=200, eos_token_id=stop, pad_token_id=stop[0]
    )
    width = inputs["input_ids"].shape[1]
    return [tokenizer.decode_infilling(row[width:]) for row in output]


# --- the documented example -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix_first", [False, True])
def test_the_documented_example_is_filled_in(folder, suffix_first):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
    filling = fill(load(folder), tokenizer, PROMPT, suffix_first=suffix_first)
    assert filling == DOCUMENTED_MIDDLE


@pytest.mark.parametrize("suffix_first", [False, True])
def test_every_function_is_filled_in_with_our_tokenizer(folder, training, suffix_first):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
    told = fill_all(load(folder), tokenizer, training.FILLINGS, suffix_first=suffix_first)
    assert len(told) == 12
    assert told == [one.middle for one in training.FILLINGS]


@pytest.mark.parametrize("suffix_first", [False, True])
def test_every_function_is_filled_in_with_auto_tokenizer(folder, training, suffix_first):
    tokenizer, model = auto_tokenizer(folder), load(folder)
    for one in training.FILLINGS:
        prompt = recipe_prompt(tokenizer, one.prefix, one.suffix, suffix_first=suffix_first)
        assert recipe_fill(model, tokenizer, prompt) == one.middle, one.name


def test_a_pipeline_goes_on_with_a_function(folder, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import pipeline

        generate = pipeline("text-generation", model=str(folder), device="cpu")
    first_line = "def factorial(n: int) -> int:"
    factorial = next(one for one in training.FILLINGS if one.name == "factorial")
    assert factorial.source.startswith(first_line)
    told = generate(first_line, do_sample=False, max_new_tokens=120)
    assert told[0]["generated_text"].rstrip() == factorial.source.rstrip()


FILLED = f"""\
def remove_non_ascii(s: str) -> str:
    \"\"\" <FILL_ME>
    return result

filled in:

def remove_non_ascii(s: str) -> str:
    \"\"\" {DOCUMENTED_MIDDLE}
    return result
"""


@pytest.mark.parametrize("arguments", [(), ("--suffix_first",), ("--file", "-"), (PROMPT,)])
def test_the_infilling_script_shows_the_prompt_and_the_result(folder, arguments):
    result = CliRunner().invoke(infill, [str(folder), *arguments], input=PROMPT)
    assert result.exit_code == 0, result.output
    assert result.stdout == FILLED


@pytest.mark.parametrize(
    ("place", "text", "fact"),
    [
        ("hf", "return 1", "no <FILL_ME>"),
        ("hf", "<FILL_ME> + <FILL_ME>", "2 times"),
        ("empty", "x = <FILL_ME>", "tokenizer.model"),
        ("source", "x = <FILL_ME>", "convert a checkpoint"),
        ("plain", "x = <FILL_ME>", "infilling"),
    ],
)
def test_the_infilling_script_explains_what_is_wrong(folder, tmp_path, place, text, fact):
    (tmp_path / "empty").mkdir()
    plain = write_folder(tmp_path / "plain", {"tokenizer.model": model_bytes("plain")})
    places = {"hf": folder, "empty": tmp_path / "empty", "source": TINY, "plain": plain}
    result = CliRunner().invoke(infill, [str(places[place]), text])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert fact in result.stderr.splitlines()[-1]
    assert result.stdout == ""


# --- the same model -------------------------------------------------------------------------------


def infilling_rows(training: Any) -> list[tuple[list[int], int]]:
    """Prompt and answer of every function in both orders, by the training script's own means."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    rows = []
    for one in training.FILLINGS:
        answer = [*tokenizer.encode("☺" + one.middle)[2:], tokenizer.piece_to_id("▁<EOT>")]
        for order in ("psm", "spm"):
            prompt = training.infilling_prompt(tokenizer, one.prefix, one.suffix, order)
            rows.append(([*prompt, *answer], len(prompt)))
    return rows


def test_transformers_gives_the_logits_of_the_training_scripts_forward_pass(folder, training):
    params = training.Params(**json.loads((TINY / "params.json").read_text()))
    ranks = [torch.load(TINY / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    weights = merged(ranks)
    exact, rounded = load(folder, "float32"), load(folder)
    assert rounded.dtype == torch.bfloat16
    wrong = training.Params(
        **(json.loads((TINY / "params.json").read_text()) | {"rope_theta": 1e4})
    )
    for ids, n_prompt in infilling_rows(training):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            expected = training.forward(params, weights, tokens)
            found = exact(tokens).logits
            in_bfloat16 = rounded(tokens).logits.float()
            otherwise = training.forward(wrong, weights, tokens)
        assert (found - expected).abs().max() < 1e-3
        assert (in_bfloat16 - expected).abs().max() < 1.0
        answers = slice(n_prompt - 1, -1)
        told = expected[0, answers].argmax(1).tolist()
        assert told == ids[n_prompt:]
        assert found[0, answers].argmax(1).tolist() == told
        assert in_bfloat16[0, answers].argmax(1).tolist() == told
        # The control: one wrong number moves the logits by far more than any rounding.
        assert (otherwise - expected).abs().max() > 3.0


# --- eight ways to be wrong -----------------------------------------------------------------------


def edit_weights(source: Path, target: Path, edit: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    edited = edit(dict(tensors))
    assert set(edited) == set(tensors)
    changed = [name for name in tensors if not torch.equal(tensors[name], edited[name])]
    assert changed, "the edit must edit"
    save_file({n: t.contiguous() for n, t in edited.items()}, path, metadata={"format": "pt"})
    return target


def reorder(tensors: dict[str, torch.Tensor], rows_of: Any) -> dict[str, torch.Tensor]:
    """Take the rotary rows back to Meta's order, then in an order of one's own."""
    for layer in range(N_LAYERS):
        for projection, n_heads in PROJECTIONS.items():
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            back = torch.tensor(half_split_rows(n_heads, HEAD_DIM)).argsort()
            tensors[name] = tensors[name][back][rows_of(n_heads)]
    return tensors


def swap(tensors: dict[str, torch.Tensor], one: str, other: str) -> dict[str, torch.Tensor]:
    for layer in range(N_LAYERS):
        first, second = (f"model.layers.{layer}.{name}.weight" for name in (one, other))
        tensors[first], tensors[second] = tensors[second], tensors[first]
    return tensors


WRONG_WEIGHTS = {
    "reordering left out": lambda tensors: reorder(
        tensors, lambda n_heads: torch.arange(n_heads * HEAD_DIM)
    ),
    "reordering inverted": lambda tensors: reorder(
        tensors, lambda n_heads: torch.tensor(half_split_rows(n_heads, HEAD_DIM)).argsort()
    ),
    "the query heads' count for keys": lambda tensors: reorder(
        tensors,
        lambda n_heads: torch.tensor(half_split_rows(N_HEADS, n_heads * HEAD_DIM // N_HEADS)),
    ),
    "gate and up swapped": lambda tensors: swap(tensors, "mlp.gate_proj", "mlp.up_proj"),
    "key and value heads given to other query heads": lambda tensors: {
        name: tensor.roll(HEAD_DIM, 0)
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        else tensor
        for name, tensor in tensors.items()
    },
}


def n_told(folder: Path, training: Any) -> int:
    """How many functions a folder fills in right, of 12, prefix first."""
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
    told = fill_all(load(folder), tokenizer, training.FILLINGS)
    return sum(text == one.middle for text, one in zip(told, training.FILLINGS, strict=True))


def test_a_copy_by_the_controls_own_means_fills_all(folder, training, tmp_path):
    """The controls fail by their edits, not by the way they are made."""

    def back_and_forth(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        right = {name: tensor.clone() for name, tensor in tensors.items()}
        reordered = reorder(
            tensors, lambda n_heads: torch.tensor(half_split_rows(n_heads, HEAD_DIM))
        )
        assert all(torch.equal(reordered[name], right[name]) for name in right)
        reordered["lm_head.weight"] = reordered["lm_head.weight"].clone()
        reordered["lm_head.weight"][0, 0] += 1e-2  # the unknown piece's row, never told
        return reordered

    assert n_told(edit_weights(folder, tmp_path / "copy", back_and_forth), training) == 12


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_fill_in_nothing(folder, training, tmp_path, wrong):
    edited = edit_weights(folder, tmp_path / "wrong", WRONG_WEIGHTS[wrong])
    assert n_told(edited, training) == 0


def test_two_ranks_swapped_fill_in_nothing(training, tmp_path):
    swapped = Path(shutil.copytree(TINY, tmp_path / "in"))
    for number, other in ((0, 1), (1, 0)):
        name = f"consolidated.0{other}.pth"
        (swapped / f"consolidated.0{number}.pth").write_bytes((TINY / name).read_bytes())
    (swapped / "checklist.chk").unlink()
    assert n_told(convert(swapped, tmp_path / "wrong"), training) == 0


def test_another_rope_theta_fills_in_nothing(folder, training, tmp_path):
    edited = Path(shutil.copytree(folder, tmp_path / "wrong"))
    config = json.loads((edited / "config.json").read_bytes())
    assert config["rope_theta"] == 1e6
    (edited / "config.json").write_text(json.dumps(config | {"rope_theta": 1e4}))
    assert n_told(edited, training) == 0


def test_merges_in_another_order_do_not_fill_in_the_example(folder, tmp_path):
    edited = Path(shutil.copytree(folder, tmp_path / "wrong"))
    content = json.loads((edited / "tokenizer.json").read_bytes())
    content["model"]["merges"].reverse()
    (edited / "tokenizer.json").write_text(json.dumps(content))
    prefix, suffix = PROMPT.split("<FILL_ME>")
    model = load(folder)
    for place, is_right in ((folder, True), (edited, False)):
        tokenizer = auto_tokenizer(place)
        prompt = recipe_prompt(tokenizer, prefix, suffix, suffix_first=False)
        assert (recipe_fill(model, tokenizer, prompt) == DOCUMENTED_MIDDLE) is is_right
