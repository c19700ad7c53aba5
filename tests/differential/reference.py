"""What an output folder must hold, computed from a checkpoint's bytes and the options alone."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from tests.checkpoints import _SPLIT_DIM, expected_state_dict, meta_shapes
from tests.differential.asked import Asked
from tests.differential.bits import KINDS, Bits, Moved, move
from tests.differential.sources import FOLDERS, OnDisk
from tests.outputs import ROOT

RECORD, CARD = "conversion.json", "README.md"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Expected:
    """What a run must leave.

    Attributes:
        exact: Files to the byte.
        values: JSON files by their values; "conversion.json" without what `found` adds.
        words: Text files by what they must contain.
        notes: What each note must contain.
        refusal: Why it must be refused, or None.
        sources: Each rank's possible CRC-32: of the whole file, and of what lies there now.
        report: What `--json` must print, beside times and notes.
    """

    exact: Mapping[str, bytes] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[Sequence[str]] = ()
    refusal: str | None = None
    sources: Mapping[str, set[str]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    on_disk: OnDisk | None = None
    sha256: bool = False

    @property
    def names(self) -> set[str]:
        return {*self.exact, *self.values, *self.words}

    def problems(self, folder: Path) -> Iterator[str]:
        """Compare a folder; files of other names are not looked at."""
        missing = sorted(name for name in self.names if not (folder / name).is_file())
        if missing:
            yield f"{missing[0]} is missing"
            return
        if any((folder / name).is_symlink() for name in self.names):
            yield "a file is a link"
        for name, raw in self.exact.items():
            if (folder / name).read_bytes() != raw:
                yield f"{name} has other bytes ({_where(raw, (folder / name).read_bytes())})"
        for name, wanted in self.values.items():
            yield from self._value_problems(folder, name, wanted)
        for name, words in self.words.items():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            yield from (f"{name} does not say {word!r}" for word in words if word not in text)

    def report_problems(self, printed: str) -> Iterator[str]:
        """Compare what `--json` printed."""
        found = _parse(printed.encode())
        wanted = {"files": sorted(self.names), **self.report}
        yield from _differences(wanted, {key: found.get(key) for key in wanted}, "--json")

    def _value_problems(self, folder: Path, name: str, wanted: Any) -> Iterator[str]:
        """Compare a JSON file's values; one that is damaged may hold anything."""
        try:
            found = _parse((folder / name).read_bytes())
            yield from self._differences(folder, name, wanted, found)
        except (ValueError, AttributeError, TypeError, jinja2.TemplateError) as problem:
            yield f"{name}: {problem}"

    def _differences(self, folder: Path, name: str, wanted: Any, found: Any) -> Iterator[str]:
        if name == RECORD:
            yield from _own_sum_problems((folder / name).read_bytes(), found.pop("crc32", None))
            yield from self._note_problems(found.pop("notes", None))
            for rank, sums in self.sources.items():
                said = found.get("source", {}).get(rank, {})
                if said.pop("crc32", None) not in sums:
                    yield f"{name}: the sum of {rank} is none of {sorted(sums)}"
            wanted = wanted | {"files": self._sums_of(folder)}
        elif name == "tokenizer_config.json" and "chat_template" in found:
            assert self.on_disk is not None
            assert self.on_disk.tokenizer is not None
            found["chat_template"] = self.on_disk.tokenizer.rendered(found["chat_template"])
        yield from (f"{name}: {problem}" for problem in _differences(wanted, found))

    def _sums_of(self, folder: Path) -> dict[str, Any]:
        """Describe every file but the record and the card, as the folder has it."""
        files = {}
        for name in self.names - {RECORD, CARD}:
            raw = (folder / name).read_bytes()
            files[name] = {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}
            if self.sha256:
                files[name]["sha256"] = hashlib.sha256(raw).hexdigest()
        return files

    def _note_problems(self, found: Any) -> Iterator[str]:
        left = list(found) if isinstance(found, list) else []
        for facts in self.notes:
            note = next((n for n in left if all(fact in n for fact in facts)), None)
            if note is None:
                yield f"{RECORD}: no note says {facts}, but {found}"
            else:
                left.remove(note)
        if left:
            yield f"{RECORD}: the note {left[0]!r} has no reason"


def _own_sum_problems(raw: bytes, said: Any) -> Iterator[str]:
    """Check the record's CRC-32 of itself, which is taken with zeros in its place."""
    before, line, after = raw.partition(f'\n  "crc32": "{said}",\n'.encode())
    zeroed = before + b'\n  "crc32": "00000000",\n' + after
    if not line or said != f"{zlib.crc32(zeroed):08x}":
        yield f"{RECORD}: its own sum is {said}"


def _where(wanted: bytes, found: bytes) -> str:
    if len(wanted) != len(found):
        return f"{len(found)} of them, not {len(wanted)}"
    at = next(n for n, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
    return f"first at {at}"


def _parse(raw: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    return json.loads(raw.decode("utf-8"), object_pairs_hook=once)


def _differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Name the values that differ; 1 is not 1.0, nor True."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*wanted, *found}):
            if key not in found or key not in wanted:
                yield f"{at}/{key} is {'missing' if key in wanted else 'one too many'}"
            else:
                yield from _differences(wanted[key], found[key], f"{at}/{key}")
    elif json.dumps(wanted) != json.dumps(found):
        yield f"{at} is {str(found)[:200]}, not {str(wanted)[:200]}"


# --- what is written ------------------------------------------------------------------------------


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
        values |= source.tokenizer.values(model.flavor, asked.tokenizer_class, model.context)
        notes += source.tokenizer.notes(asked.tokenizer_class)
    return Expected(
        exact,
        values,
        {CARD: model.card_words()} if asked.card else {},
        notes,
        sources=_source_sums(source),
        report=model.report(),
        on_disk=source,
        sha256=asked.sha256,
    )


def _tokenizer_alone(source: OnDisk, asked: Asked) -> Expected:
    assert source.tokenizer is not None
    named = asked.tokenizer_class or "PreTrainedTokenizerFast"
    return Expected(
        {"tokenizer.model": source.tokenizer.raw},
        {
            **source.tokenizer.values(asked.variant, named, asked.context),
            RECORD: {
                "converter": _converter(),
                "model": None,
                "options": {
                    "tokenizer_class": named,
                    "skip_tokenizer": False,
                    "max_position_embeddings": asked.context,
                    "max_shard_size": asked.shard_bytes,
                    "variant": asked.variant,
                },
                "source": {},
                "tensors": {},
            },
        },
        notes=source.tokenizer.notes(asked.tokenizer_class),
        report={"tensor_bytes": 0, "cast": None, "dropped": []},
        on_disk=source,
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
        self.tensors = {
            name: move(bits, kind, self._target) for name, bits in self._joined().items()
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
            dimension = _SPLIT_DIM[name.split(".")[-2]]
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
            "tie_word_embeddings": False,
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
        name = "no released model" + (f" ({family} by its folder's name)" if family else "")
        return {
            "converter": _converter(),
            "model": name,
            "options": {
                "dtype": self._target.name,
                "max_position_embeddings": self.context,
                "max_shard_size": asked.shard_bytes,
                "skip_tokenizer": asked.tokenizer == "skip",
                "tokenizer_class": asked.tokenizer_class,
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
            "dropped": list(self._checkpoint.rope),
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
        if self._asked.model_size is not None:
            yield "--model_size", self._asked.model_size

    def card_words(self) -> list[str]:
        n_parameters = sum(tensor.bits.size for tensor in self.tensors.values())
        words = [f"{n_parameters:,}", self._target.name, str(self.context)]
        if self._target != self._checkpoint.kind:
            words.append(f"cast from {self._checkpoint.kind.name}")
        return words
