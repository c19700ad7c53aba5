"""What programs save beside a model's tensors is passed over, or refused by its name."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import Counter, defaultdict, deque
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from codellama_convert.formats.pth.pickle_beside import Inert
from codellama_convert.formats.pth.pickle_names import (
    GlobalName,
    RefusedPickle,
)
from codellama_convert.formats.pth.pickle_reader import parse_pickle
from tests.faults.hostile.rank_bytes import (
    p_call,
    p_global,
    p_pickle,
    p_str,
)


class Settings:
    """Stands for a class of a training script."""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=1e-4), "argparse.Namespace"),
        (np.float64(1.5), "multiarray.scalar"),
        (np.arange(3), "multiarray._reconstruct"),
        (defaultdict(int), "collections.defaultdict"),
        (Path("out"), "pathlib."),
        (deque([1]), "collections.deque"),
        (Settings(), "test_pickle_beside.Settings"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_trainers_save_is_called_that_or_malicious(value: object, name: str) -> None:
    """It was said of the file of an honest training run that it may be malicious, and no more."""
    pickled = pickle.dumps({"model": 1, "args": value}, protocol=2)
    with pytest.raises(RefusedPickle) as caught:
        parse_pickle(pickled)
    assert name in str(caught.value)
    assert "after 'args'" in str(caught.value)
    hint = caught.value.hint
    assert hint is not None
    for fact in ("a trainer's file, or malicious", "Nothing was executed", "state dict alone"):
        assert fact in hint


@pytest.mark.parametrize("value", [os.system, Fraction(1, 3), np.random.default_rng, torch.load])
def test_any_other_name_is_not_called_a_trainers(value: object) -> None:
    with pytest.raises(RefusedPickle, match="not allowed in a weights file") as caught:
        parse_pickle(pickle.dumps(value, protocol=2))
    assert caught.value.hint == "the file may be malicious. Nothing was executed"


INERT: list[tuple[object, str]] = [
    (Counter({30: 1}), "a Counter"),
    ({1, 2}, "a set"),
    (set(), "a set"),
    (frozenset({1}), "a frozenset"),
    (b"state", "bytes"),
    (b"", "bytes"),
    (bytearray(b"state"), "a bytearray"),
    (bytearray(), "a bytearray"),
    (b"s" * 70_000, "bytes"),
    (1 << 127, "an integer of more than 64 bits"),
    (-(1 << 3000), "an integer of more than 64 bits"),
    (torch.Size([1]), "a torch.Size"),
    (torch.device("cpu"), "a torch.device"),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("value", "kind"), INERT, ids=lambda value: str(value)[:20])
def test_plain_state_beside_a_model_is_passed_over(protocol: int, value: object, kind: str) -> None:
    """It was called damaged, or malicious; nothing of it is kept but its kind."""
    token = parse_pickle(pickle.dumps({"a": value, "b": 1}, protocol=protocol))["a"]
    assert type(token) is Inert
    assert token.what.partition(" (opcode")[0] == kind


@pytest.mark.parametrize("value", [torch.bfloat16, torch.int64])
def test_a_dtype_beside_a_model_is_a_name(value: torch.dtype) -> None:
    parsed = parse_pickle(pickle.dumps({"a": value}))
    assert parsed == {"a": GlobalName("torch", str(value)[6:])}


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x8f(N\x90]b",  # a state for a set
        b"](N\x90",  # items of a set for a list
        p_global("collections", "Counter") + b")\x81",  # made without a call
        p_global("collections", "Counter") + b"]R",  # called with no tuple
        b"}\x8fNs",  # a set as a key
        p_call(p_global("_codecs", "encode"), p_str("x")) + b")R",  # bytes that are called
    ],
)
def test_state_that_is_passed_over_is_no_way_in(pickled: bytes) -> None:
    with pytest.raises(RefusedPickle):
        parse_pickle(p_pickle(pickled))


def test_dicts_may_be_numbered_but_not_keyed_by_more() -> None:
    """Optimizers number their states; hashing a forged key may take for ever."""
    assert parse_pickle(pickle.dumps({"state": {0: {}, -1: {}}})) == {"state": {0: {}, -1: {}}}
    assert parse_pickle(pickle.dumps({"loss": {0.5: 1}})) == {"loss": {0.5: 1}}
    for key in (None, True, (1, 2), b"a"):
        with pytest.raises(RefusedPickle, match="dict key") as caught:
            parse_pickle(pickle.dumps({"state": {key: {}}}))
        assert caught.value.hint is not None
        assert "a trainer's file, or malicious" in caught.value.hint
