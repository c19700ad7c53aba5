"""Own the model card, README.md in the output: what the folder holds and how it came to be.

`conversion.json` is the record; the card is for people, and may be edited.
"""

from __future__ import annotations

from codellama_convert import __version__
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.recognise import Recognised
from codellama_convert.tensors import Dtype
from codellama_convert.tokenizer.hf_files import CHAT_FLAVORS, has_infilling

CARD_NAME = "README.md"

# In every card, and in no file of somebody else's.
CARD_MARK = "| converted by | codellama-convert "

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
{metadata}---

# {title}

Converted from Meta's checkpoint format to the one that Hugging Face's transformers loads.

| | |
|---|---|
| base model | {base_model} |
| parameters | {parameters:,} |
| weights | {weights} |
| context | {context} |
| rope_theta | {rope_theta} |
| vocabulary | {vocabulary} |
| converted from | {n_ranks} x `consolidated.NN.pth` |
{mark}{version} |

## Use

```python
{loading}
```

`dtype="auto"` loads {dtype}, the dtype of the files; without it, transformers 4 loads float32.
{more_uses}
## Proof

`conversion.json` records the options, and the size and CRC-32 of every tensor, file and source rank.
`codellama-convert verify --output_dir FOLDER` compares the folder with it.

## Licence

The weights and the tokenizer are under the licence that came with the checkpoint.
If you redistribute them, include its files: LICENSE, and USE_POLICY.md if there is one.
"""
# What model hubs read: meta-llama/codellama and meta-llama/llama, LICENSE, are one licence, which
# hubs call llama2.
_METADATA = {
    "Code Llama": "license: llama2\nlanguage:\n- code\ntags:\n- llama\n- llama-2\n",
    "Llama 2": "license: llama2\ntags:\n- llama\n- llama-2\n",
    "Llama 3": "license: llama3\ntags:\n- llama\n- llama-3\n",
    "Llama 3.1": "license: llama3.1\ntags:\n- llama\n- llama-3\n",
    "Llama 3.2": "license: llama3.2\ntags:\n- llama\n- llama-3\n",
    "Llama 3.3": "license: llama3.3\ntags:\n- llama\n- llama-3\n",
    "Llama Guard 2": "license: llama3\ntags:\n- llama\n- llama-3\n",
}
_UNKNOWN_METADATA = "tags:\n- llama\n"
_LOADING_WEIGHTS = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")"""
_LOADING_BOTH = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")"""
_INFILLING = """
To fill a gap in a text (not every version of transformers' own tokenizers builds the right prompt):

```python
from codellama_convert import CodeLlamaTokenizer

tokenizer = CodeLlamaTokenizer.from_pretrained("FOLDER")
inputs = tokenizer("def one() -> int:\\n    return <FILL_ME>\\n", return_tensors="pt")
```
"""
_CHAT = """
`tokenizer.apply_chat_template` encodes a dialogue as Meta's code does.
"""


def model_card(
    config: ModelConfig,
    recognised: Recognised,
    tokenizer: TokenizerModel | None,
    *,
    source_dtype: str,
    dtype: Dtype,
    n_parameters: int,
    n_ranks: int,
) -> bytes:
    """Write the card.

    Args:
        config: The model.
        recognised: What it was recognised as.
        tokenizer: What the folder holds of one; None for weights alone.
        source_dtype: Names of the dtypes of the checkpoint's tensors.
        dtype: Of the written tensors.
        n_parameters: Elements of all tensors.
        n_ranks: Files that the checkpoint had.

    Returns:
        Markdown with a YAML head, as model hubs read it.
    """
    weights = f"{dtype.name}, bit for bit the checkpoint's"
    if dtype.name != source_dtype:
        weights = f"{dtype.name}, cast from {source_dtype}"
    context = f"{recognised.max_position_embeddings} tokens"
    if not recognised.context_is_known:
        context += " (a guess: it is not in the checkpoint)"
    rope_theta = f"{config.rope_theta:g}"
    if recognised.rope_scaling_factor is not None:
        rope_theta += f", scaled by {recognised.rope_scaling_factor:g} as Llama 3.1 does it"
        rope_theta += "" if recognised.scaling_is_known else " (a guess: the factor is not known)"
    more_uses = ""
    if tokenizer is not None and has_infilling(tokenizer):
        more_uses += _INFILLING
    if tokenizer is not None and recognised.flavor in CHAT_FLAVORS:
        more_uses += _CHAT
    return _TEMPLATE.format(
        base_model=recognised.name,
        parameters=n_parameters,
        weights=weights,
        metadata=_METADATA.get(recognised.family or "", _UNKNOWN_METADATA),
        title=recognised.name if recognised.family else "A converted Llama checkpoint",
        context=context,
        dtype=dtype.name,
        rope_theta=rope_theta,
        vocabulary=config.vocab_size,
        n_ranks=n_ranks,
        mark=CARD_MARK,
        version=__version__,
        loading=_LOADING_WEIGHTS if tokenizer is None else _LOADING_BOTH,
        more_uses=more_uses,
    ).encode()
