"""Own the names that loaders of a model take from its folder, whoever wrote them.

Found by watching which names AutoConfig, AutoTokenizer, AutoProcessor, AutoModelForCausalLM,
GenerationConfig and the Llama classes of transformers 4.57 and 5.23 look up in a converted folder;
from what their `save_pretrained` and PEFT's write; and from vLLM, which takes every safetensors
file, and llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import re

TEMPLATES_NAME = "additional_chat_templates"  # a folder

# A variant is an infix, such as model.fp16.safetensors.
_VARIANT = r"(\..+)?"
_SHARD = r"-\d{5}-of-\d{5}"

# Loaders find the weights by one of these.
_ENTRANCES = re.compile(
    rf"""
    (?!.*{_SHARD}) (
      model{_VARIANT}\.safetensors | model\.safetensors\.index{_VARIANT}\.json
    | pytorch_model{_VARIANT}\.bin | pytorch_model\.bin\.index{_VARIANT}\.json
    | tf_model\.h5(\.index\.json)? | flax_model\.msgpack(\.index\.json)?
    | adapter_config\.json
    )
    """,
    re.VERBOSE,
)
# The weights themselves, and what says which model they belong to.
_OF_WEIGHTS = re.compile(
    rf"""
      model{_VARIANT}{_SHARD}\.safetensors | pytorch_model{_VARIANT}{_SHARD}\.bin
    | tf_model{_SHARD}\.h5 | flax_model{_SHARD}\.msgpack
    | adapter_model({_SHARD})?\.(safetensors|bin) | adapter_model\.(safetensors|bin)\.index\.json
    | (generation_)?config\.json
    """,
    re.VERBOSE,
)
# What a conversion or `save_pretrained` writes of a tokenizer or a processor.
_OF_TOKENIZER = re.compile(
    rf"""
      ((video_)?pre)?processor_config\.json
    | tokenizer(_config)?\.json | tokenizer\.model | vocab\.(json|txt) | merges\.txt
    | added_tokens\.json | special_tokens_map\.json
    | chat_template\.(jinja|json) | {TEMPLATES_NAME}
    """,
    re.VERBOSE,
)
# What no `save_pretrained` writes into a Llama model's folder, but loaders act on.
_OTHERS = re.compile(
    r"""
      .*\.safetensors
    | custom_generate  # transformers 4 runs the code in this folder
    | tekken\.json | tokenizer\.model\.v.+  # Mistral's tokenizers
    | (quantize|quant|hf_quant)_config\.json  # of GPTQ, AWQ and ModelOpt
    """,
    re.VERBOSE | re.DOTALL,
)


def is_entrance(name: str) -> bool:
    """Return whether loaders begin with a file of this name."""
    return _ENTRANCES.fullmatch(name) is not None


def is_of_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, leads to them or says what they are."""
    return is_entrance(name) or _OF_WEIGHTS.fullmatch(name) is not None


def is_saved_by_libraries(name: str) -> bool:
    """Return whether a file or folder of this name belongs to a saved model, and is removed with it."""
    return is_of_weights(name) or _OF_TOKENIZER.fullmatch(name) is not None


def is_taken_by_loaders(name: str) -> bool:
    """Return whether a file or folder of this name changes what a model's folder loads as."""
    return is_saved_by_libraries(name) or _OTHERS.fullmatch(name) is not None
