"""Random tokenizers, and what Hugging Face's files must say of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from sentencepiece import sentencepiece_model_pb2 as pb

from tests.witness.checkpoints import tokenizer_model
from tests.witness.vocabularies import with_infilling, with_step

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_INFILLING = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
_STEP = "<step>"
_N_ADDED = 16  # by both `with_infilling` and `with_step`
FEWEST_PIECES = 300 + _N_ADDED
_DIALOGUE = (("system", "be brief"), ("user", " hi "), ("assistant", "yes"), ("user", "why"))


# What tokenizer.json says of every model.
_FRAME: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}
_BPE = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
}


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.model.

    Attributes:
        raw: Its bytes.
    """

    raw: bytes

    @cached_property
    def _model(self) -> Any:
        return pb.ModelProto.FromString(self.raw)

    @cached_property
    def texts(self) -> list[str]:
        return [piece.piece for piece in self._model.pieces]

    @property
    def bos(self) -> int:
        return self.texts.index(self._model.trainer_spec.bos_piece)

    @property
    def eos(self) -> int:
        return self.texts.index(self._model.trainer_spec.eos_piece)

    @property
    def _unk(self) -> int:
        return self.texts.index(self._model.trainer_spec.unk_piece)

    def stop_ids(self, flavor: str | None) -> int | list[int]:
        """Give `eos_token_id` of generation_config.json."""
        if flavor in ("instruct", "chat") and _STEP in self.texts:
            return [self.eos, self.texts.index(_STEP)]
        return self.eos

    def values(
        self, flavor: str | None, tokenizer_class: str, max_length: int | None
    ) -> dict[str, Any]:
        """Give the values of the JSON files; a chat template is what a dialogue becomes."""
        special = {
            f"{role}_token": self.texts[number]
            for role, number in (("bos", self.bos), ("eos", self.eos), ("unk", self._unk))
        }
        config = {
            **special,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_input_names": ["input_ids", "attention_mask"],
            # transformers' spelling of no limit.
            "model_max_length": int(1e30) if max_length is None else max_length,
            "padding_side": "left",
            "tokenizer_class": tokenizer_class,
        }
        if tokenizer_class.startswith("CodeLlama") and not self._can_infill:
            for role in ("prefix", "middle", "suffix", "eot", "fill"):
                config[f"{role}_token"] = None
        if flavor in ("instruct", "chat"):
            config["chat_template"] = self._dialogue()
        return {
            "tokenizer.json": self._tokenizer_json(),
            "tokenizer_config.json": config,
            "special_tokens_map.json": special,
        }

    def rendered(self, template: str) -> str:
        """Render a dialogue as transformers does."""

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(
            messages=[{"role": role, "content": text} for role, text in _DIALOGUE],
            bos_token=self.texts[self.bos],
            eos_token=self.texts[self.eos],
            add_generation_prompt=True,
            raise_exception=refuse,
        )

    def _dialogue(self) -> str:
        bos, eos = self.texts[self.bos], self.texts[self.eos]
        if _STEP in self.texts:
            return (
                f"{bos} Source: system \n\n be brief<step> Source: user \n\n hi<step>"
                " Source: assistant \n\n yes<step> Source: user \n\n why<step>"
                " Source: assistant\nDestination: user \n\n "
            )
        first = "<<SYS>>\nbe brief\n<</SYS>>\n\n hi"
        return f"{bos}[INST] {first} [/INST] yes {eos}{bos}[INST] why [/INST]"

    @property
    def _can_infill(self) -> bool:
        return all(text in self.texts for text in _INFILLING)

    def notes(self, tokenizer_class: str) -> list[Sequence[str]]:
        """List what the notes must name: the class asked for, and pieces that make ids inexact."""
        normal = [(p.piece, p.score) for p in self._model.pieces if p.type == _NORMAL]
        alone = {text for text, _ in normal if len(text) == 1}
        orphans = {c for text, _ in normal if len(text) > 1 for c in text} - alone
        scores = Counter(score for _, score in normal)
        tied = [
            text
            for text, score in normal
            if scores[score] > 1 and text.strip("▁") and not text.startswith("▁<") and text != _STEP
        ]
        exact = tokenizer_class == "PreTrainedTokenizerFast"
        notes: list[Sequence[str]] = [] if exact else [(tokenizer_class,)]
        notes += [(repr(min(orphans)), f"{len(orphans)} in all")] if orphans else []
        return notes + ([(repr(tied[0]), f"{len(tied)} in all")] if tied else [])

    def _tokenizer_json(self) -> dict[str, Any]:
        bos = self.texts[self.bos]
        start = [{"SpecialToken": {"id": bos, "type_id": n}} for n in (0, 1)]
        one, two = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
        return {
            **_FRAME,
            "added_tokens": self._added_tokens(),
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [start[0], one],
                "pair": [start[0], one, start[1], two],
                "special_tokens": {bos: {"id": bos, "ids": [self.bos], "tokens": [bos]}},
            },
            "model": {
                **_BPE,
                "unk_token": self.texts[self._unk],
                "vocab": {text: number for number, text in enumerate(self.texts)},
                "merges": self._merges(),
            },
        }

    def _added_tokens(self) -> list[dict[str, Any]]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": number, "content": piece.piece, **flags, "special": True}
            for number, piece in enumerate(self._model.pieces)
            if piece.type in (_UNKNOWN, _CONTROL) or piece.piece in (*_INFILLING, _STEP)
        ]

    def _merges(self) -> list[str]:
        """List every split of every piece: the best score first, then the longer left half."""
        score = {p.piece: p.score for p in self._model.pieces if p.type == _NORMAL}
        splits = [
            (text[:cut], text[cut:])
            for text in score
            for cut in range(1, len(text))
            if text[:cut] in score and text[cut:] in score
        ]
        number = {text: n for n, text in enumerate(self.texts)}
        splits.sort(
            key=lambda s: (-score[s[0] + s[1]], -len(s[0]), -len(s[1]), number[s[0] + s[1]])
        )
        return [f"{left} {right}" for left, right in splits]


def draw_tokenizer(rng: random.Random, n_pieces: int) -> Tokenizer:
    """Draw a tokenizer of exactly that many pieces, `FEWEST_PIECES` or more."""
    kind = rng.choice(("plain", "infilling", "step"))
    raw = tokenizer_model(n_pieces if kind == "plain" else n_pieces - _N_ADDED)
    if kind != "plain":
        raw = (with_infilling if kind == "infilling" else with_step)(raw)
    model: Any = pb.ModelProto.FromString(raw)
    if rng.random() < 0.3:  # begin, end, unknown: as trainers order them whom nobody told otherwise
        roles = rng.sample(("bos", "eos", "unk"), 3)
        special = [
            {"unk": model.pieces[0], "bos": model.pieces[1], "eos": model.pieces[2]}[role]
            for role in roles
        ]
        special = [pb.ModelProto.SentencePiece.FromString(p.SerializeToString()) for p in special]
        for number, (role, piece) in enumerate(zip(roles, special, strict=True)):
            model.pieces[number].CopyFrom(piece)
            setattr(model.trainer_spec, f"{role}_id", number)
    return Tokenizer(model.SerializeToString())
