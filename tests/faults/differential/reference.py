"""What an output folder must hold, computed from a checkpoint's bytes and the options alone."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tests.faults.differential.asked import Asked
from tests.faults.differential.bits import KINDS, Bits, Moved, move
from tests.faults.differential.expected import CARD, RECORD, Expected
from tests.faults.differential.sources import FOLDERS, OnDisk
from tests.outputs import ROOT
from tests.witness.checkpoints import SPLIT_DIM, expected_state_dict, meta_shapes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def expected(source: OnDisk, asked: Asked) -> Expected:
    """Say what a conversion of these files with these options must leave."""
    if asked.tokenizer == "only":
        return _tokenizer_alone(source, asked)
    params = source.parsed_params()
    if params is None:
        return Expected(refusal="params.json is damaged")
    model = _Model(source, asked, params)
    overflowed = [name for name, one in model.tensors.items() if one.overflowed]
    if overflowed:
        return Expected(refusal=f"{overflowed[0]} does not fit")
    values: dict[str, Any] = {
        "config.json": model.config(),
        "generation_config.json": model.generation_config(),
        RECORD: model.record(),
    }
    exact = {name: model.safetensors(names) for name, names in model.shards.items()}
    if len(exact) > 1:
        values[INDEX] = model.index()
    notes = list(model.notes())
    if source.tokenizer is not None and asked.tokenizer != "skip":
        exact["tokenizer.model"] = source.tokenizer.raw
        values |= source.tokenizer.values(model.flavor, asked.class_name, model.context)
        notes += source.tokenizer.notes(asked.class_name)
    return Expected(
        exact,
        values,
        {CARD: model.card_words()} if asked.card else {},
        notes,
        sources=_source_sums(source),
        report=model.report(),
        tokenizer=source.tokenizer,
        sha256=asked.sha256,
    )


def _tokenizer_alone(source: OnDisk, asked: Asked) -> Expected:
    assert source.tokenizer is not None
    return Expected(
        {"tokenizer.model": source.tokenizer.raw},
        {
            **source.tokenizer.values(asked.variant, asked.class_name, asked.context),
            RECORD: {
                "converter": _converter(),
                "model": None,
                "options": {
                    "tokenizer_class": asked.class_name,
                    "skip_tokenizer": False,
                    "max_position_embeddings": asked.context,
                    "max_shard_size": asked.shard_bytes,
                    "variant": asked.variant,
                },
                "source": {},
                "tensors": {},
            },
        },
        notes=source.tokenizer.notes(asked.class_name),
        report={"tensor_bytes": 0, "cast": None, "dropped": []},
        tokenizer=source.tokenizer,
        sha256=asked.sha256,
    )


def _converter() -> dict[str, str]:
    assert _VERSION is not None
    return {"name": "codellama-convert", "version": _VERSION[1]}


def _source_sums(source: OnDisk) -> dict[str, set[str]]:
    return {
        rank.name: {
            f"{zlib.crc32(raw):08x}" for raw in ((rank.raw, now) if rank.summed else (now,))
        }
        for rank, now in zip(source.ranks, source.raw, strict=True)
    }


class _Model:
    """The weights of an output, and what is said of them."""

    def __init__(self, source: OnDisk, asked: Asked, params: Mapping[str, Any]) -> None:
        self._source, self._asked, self._params = source, asked, params
        self._checkpoint = source.checkpoint
        kind = source.checkpoint.kind
        self._target = next((k for k in KINDS if k.name == asked.dtype), kind)
        self._is_tied = all(
            rank.places["output.weight"] == rank.places["tok_embeddings.weight"]
            for rank in source.ranks
        )
        self.tensors = {
            name: move(bits, kind, self._target)
            for name, bits in self._joined().items()
            if not (self._is_tied and name == "lm_head.weight")
        }
        self.shards = self._split()
        family, named = FOLDERS[source.checkpoint.folder_name]
        alias = "chat" if (asked.model_size or "").endswith("f") else None
        self.flavor = asked.variant or alias or named
        self._family = family
        self._theta = float(params.get("rope_theta") or 10000)
        guess = 4096 if family == "Llama 2" else 2048
        guess = 16384 if self._theta == 1e6 else guess
        self.context = asked.context or guess

    def _joined(self) -> dict[str, Bits]:
        """Join the ranks, and name and order what comes of it as Hugging Face does."""
        integer = {2: torch.int16, 4: torch.int32}[self._checkpoint.kind.width]
        state = {}
        for name in meta_shapes(self._checkpoint.shape):
            parts = [self._source.tensor(n, name) for n in range(len(self._source.ranks))]
            dimension = SPLIT_DIM[name.split(".")[-2]]
            whole = parts[0] if dimension is None else np.concatenate(parts, dimension)
            whole = np.array(whole, order="C")  # of its own, as torch wants it
            state[name] = torch.from_numpy(whole.view(f"i{whole.itemsize}"))
        assert all(tensor.dtype == integer for tensor in state.values())
        return {
            name: tensor.numpy().view(self._checkpoint.kind.unsigned)
            for name, tensor in expected_state_dict(state, self._checkpoint.shape).items()
        }

    def _split(self) -> dict[str, list[str]]:
        """Fill files in order; a file is closed where the next tensor would make it too large."""
        groups: list[list[str]] = []
        filled = 0
        for name, tensor in self.tensors.items():
            if not groups or filled + tensor.bits.nbytes > self._asked.shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += tensor.bits.nbytes
        n_files = len(groups)
        if n_files == 1:
            return {SINGLE: groups[0]}
        return {
            f"model-{number:05d}-of-{n_files:05d}.safetensors": names
            for number, names in enumerate(groups, start=1)
        }

    def safetensors(self, names: Sequence[str]) -> bytes:
        """Write a file as the library does: by name, the header padded to 8 bytes."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        body = b""
        for name in sorted(names):
            bits = self.tensors[name].bits
            header[name] = {
                "dtype": self._target.code,
                "shape": list(bits.shape),
                "data_offsets": [len(body), len(body) + bits.nbytes],
            }
            body += bits.tobytes()
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + body

    def index(self) -> dict[str, Any]:
        weight_map = {name: file for file, names in self.shards.items() for name in names}
        total = sum(tensor.bits.nbytes for tensor in self.tensors.values())
        return {"metadata": {"total_size": total}, "weight_map": weight_map}

    def config(self) -> dict[str, Any]:
        shape = self._checkpoint.shape
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": self._special_ids()[0],
            "eos_token_id": self._special_ids()[1],
            "hidden_act": "silu",
            "hidden_size": shape.dim,
            "initializer_range": 0.02,
            "intermediate_size": shape.hidden,
            "max_position_embeddings": self.context,
            "model_type": "llama",
            "num_attention_heads": shape.n_heads,
            "num_hidden_layers": shape.n_layers,
            "num_key_value_heads": shape.n_kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": float(self._params["norm_eps"]),
            "rope_scaling": None,
            "rope_theta": self._theta,
            "tie_word_embeddings": self._is_tied,
            "torch_dtype": self._target.name,
            "use_cache": True,
            "vocab_size": shape.vocab,
        }

    def _special_ids(self) -> tuple[int, int]:
        tokenizer = self._source.tokenizer
        if tokenizer is None or self._asked.tokenizer == "skip":
            return 1, 2
        return tokenizer.bos, tokenizer.eos

    def generation_config(self) -> dict[str, Any]:
        bos, eos = self._special_ids()
        tokenizer = self._source.tokenizer
        if tokenizer is None or self._asked.tokenizer == "skip":
            return {"bos_token_id": bos, "eos_token_id": eos}
        return {"bos_token_id": bos, "eos_token_id": tokenizer.stop_ids(self.flavor)}

    def record(self) -> dict[str, Any]:
        """Spell conversion.json but for its notes, the files, and the sums of the ranks."""
        asked, family = self._asked, self._family
        name = "not a released model" + (f" ({family} by its folder's name)" if family else "")
        return {
            "converter": _converter(),
            "model": name,
            "options": {
                "dtype": self._target.name,
                "max_position_embeddings": self.context,
                "max_shard_size": asked.shard_bytes,
                "skip_tokenizer": asked.tokenizer == "skip",
                "tokenizer_class": None if asked.tokenizer == "skip" else asked.class_name,
                "variant": self.flavor,
            },
            "source": {rank.name: {"size": len(rank.raw)} for rank in self._source.ranks},
            "tensors": {
                name: self._tensor(file, self.tensors[name])
                for file, names in self.shards.items()
                for name in names
            },
        }

    def _tensor(self, file: str, tensor: Moved) -> dict[str, Any]:
        raw = tensor.bits.tobytes()
        counts = {"became_zero": tensor.became_zero, "nonfinite": tensor.nonfinite}
        return {
            "file": file,
            "dtype": self._target.code,
            "shape": list(tensor.bits.shape),
            "size": len(raw),
            "crc32": f"{zlib.crc32(raw):08x}",
            **{what: n for what, n in counts.items() if n},
        }

    def report(self) -> dict[str, Any]:
        kind = self._checkpoint.kind
        return {
            "tensor_bytes": sum(tensor.bits.nbytes for tensor in self.tensors.values()),
            "cast": None if self._target == kind else f"{kind.name} to {self._target.name}",
            "dropped": [*["output.weight"] * self._is_tied, *self._checkpoint.rope],
            "became_zero": {
                n: one.became_zero for n, one in self.tensors.items() if one.became_zero
            },
            "nonfinite": {n: one.nonfinite for n, one in self.tensors.items() if one.nonfinite},
        }

    def notes(self) -> Iterator[Sequence[str]]:
        if self._asked.context is None:
            yield "max_position_embeddings", str(self.context)
        bare = [rank.name for rank in self._source.ranks if not rank.summed]
        if bare:
            yield (bare[0],)
        if "made_by" in self._params:
            yield ("made_by",)
        if self._is_tied:
            yield ("output.weight", "tie_word_embeddings")
        if self._asked.model_size is not None:
            yield "--model_size", self._asked.model_size

    def card_words(self) -> list[str]:
        n_parameters = sum(tensor.bits.size for tensor in self.tensors.values())
        words = [f"{n_parameters:,}", self._target.name, str(self.context)]
        if self._target != self._checkpoint.kind:
            words.append(f"cast from {self._checkpoint.kind.name}")
        return words
