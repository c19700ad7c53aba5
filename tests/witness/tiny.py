"""Own what the tests of the tiny Code Llama share: its ranks by hand, loading, and filling.

Knows nothing of what is right for whom: expectations stand in the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.cli.commands import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = EXAMPLES / "tiny-codellama"

# Meta's rank rules, spelled here once more: the dimension that is put together again.
JOINED_ON = {
    "tok_embeddings": 1,
    "output": 0,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w2": 1,
    "w3": 0,
}
COPIED = ("attention_norm", "ffn_norm", "norm")

DOCUMENTED_PREFIX = 'def remove_non_ascii(s: str) -> str:\n    """ '
DOCUMENTED_SUFFIX = "\n    return result\n"
DOCUMENTED_MIDDLE = '''Remove non-ASCII characters from a string.

    Args:
        s: The text to clean.

    Returns:
        The same text with every character above code 127 left out.
    """
    result = ""
    for c in s:
        if ord(c) < 128:
            result += c'''

LONGEST_ANSWER = 100  # tokens, ▁<EOT> among them; a model that is wrong does not stop by itself


def merged(ranks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put ranks together by the table above; float32, the rotary buffer left out."""
    whole = {}
    for name in ranks[0]:
        kind = name.split(".")[-2]
        if kind in COPIED:
            whole[name] = ranks[0][name].float()
        elif name != "rope.freqs":
            whole[name] = torch.cat([rank[name] for rank in ranks], JOINED_ON[kind]).float()
    return whole


def convert(source: Path, target: Path) -> Path:
    result = CliRunner().invoke(main, ["--input_dir", str(source), "--output_dir", str(target)])
    assert result.exit_code == 0, result.output
    return target


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


def recipe_fill(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """Fill by the recipe, all prompts in one batch."""
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("▁<EOT>")]
    width = max(map(len, prompts))
    ids = torch.tensor([[stop[0]] * (width - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    output = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=LONGEST_ANSWER,
        eos_token_id=stop, pad_token_id=stop[0],
    )  # fmt: skip
    begin = tokenizer("☺", add_special_tokens=False)["input_ids"][1:]
    return [
        tokenizer.decode(begin + row[width:].tolist(), skip_special_tokens=True)[1:]
        for row in output
    ]


def fill_all(model: Any, tokenizer: CodeLlamaTokenizer, fillings: Any, **order: bool) -> list[str]:
    """Fill every function in one batch, padded on the left."""
    prompts = [f"{one.prefix}<FILL_ME>{one.suffix}" for one in fillings]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, **order)
    stop = [tokenizer.eos_token_id, tokenizer.eot_id]
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        eos_token_id=stop,
        pad_token_id=stop[0],
    )
    width = inputs["input_ids"].shape[1]
    return [tokenizer.decode_infilling(row[width:]) for row in output]
