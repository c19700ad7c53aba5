"""params.json of every release, word for word."""

from __future__ import annotations

from pathlib import Path

from codellama_convert.model.config import ModelConfig, build_config, parse_params

PATH = Path("params.json")
LLAMA_1_7B = b'{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_13B = b'{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_30B = b'{"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_65B = b'{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
LLAMA_2_7B = b'{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}\n'
LLAMA_2_13B = b'{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "vocab_size": -1}\n'
LLAMA_2_70B = b'{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
CODE_7B = b'{"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}'
CODE_13B = b'{"dim": 5120, "n_layers": 40, "n_heads": 40, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}'
CODE_34B = b'{"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000.0}'
CODE_70B = b'{"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 1000000}'
LLAMA_3_1_8B = b'{"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": true}'
LLAMA_3_8B = LLAMA_3_1_8B.replace(b', "use_scaled_rope": true', b"")
LLAMA_3_1_70B = b"""{
  "dim": 8192,
  "n_layers": 80,
  "n_heads": 64,
  "n_kv_heads": 8,
  "vocab_size": 128256,
  "ffn_dim_multiplier": 1.3,
  "multiple_of": 4096,
  "norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "use_scaled_rope": true
}"""
LLAMA_3_70B = LLAMA_3_1_70B.replace(b',\n  "use_scaled_rope": true', b"")
LLAMA_3_1_405B = (
    LLAMA_3_1_8B.replace(b"4096", b"16384")
    .replace(b'"n_layers": 32, "n_heads": 32', b'"n_layers": 126, "n_heads": 128')
    .replace(b"1.3", b"1.2")
    .replace(b"1024", b"4096")
)
LLAMA_3_2_1B = b'{"dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32, "n_kv_heads": 8, "n_layers": 16, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": true, "vocab_size": 128256}'
LLAMA_3_2_3B = b"""{
  "dim": 3072,
  "n_layers": 28,
  "n_heads": 24,
  "n_kv_heads": 8,
  "vocab_size": 128256,
  "ffn_dim_multiplier": 1.0,
  "multiple_of": 256,
  "norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "use_scaled_rope": true
}"""
CODE_70B_TUNED = CODE_70B.replace(b"1000000", b"10000")


def model(content: bytes, intermediate_size: int, vocab_size: int) -> ModelConfig:
    params, _ = parse_params(content, PATH)
    return build_config(
        params, intermediate_size=intermediate_size, vocab_size=vocab_size, path=PATH
    )
