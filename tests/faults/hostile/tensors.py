"""Ranks whose tensors and storages lie about their numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile.case import accepted, many, refused
from tests.faults.hostile.rank_bytes import (
    NORM,
    P_8_1,
    P_8_8,
    P_FALSE,
    P_NONE,
    P_TRUE,
    QUERY,
    RANK,
    STATE,
    declare,
    p_dict,
    p_int,
    p_pickle,
    p_str,
    p_tuple,
    put,
    put_pickle,
    rank_file,
    raw_tensor,
)


@many(
    RANK,
    {
        "more": ({"n_elements": 65}, QUERY, "data/1", "65 x 2", "128"),
        "fewer": ({"n_elements": 63}, QUERY, "data/1", "63 x 2", "128"),
        "fp32-over-bf16": ({"storage": "FloatStorage"}, QUERY, "data/1", "64 x 4", "128"),
        "2-to-the-62": ({"n_elements": 1 << 62}, QUERY, "data/1", f"{1 << 62} x 2", "128"),
        "wraps-to-the-right-size": ({"n_elements": (1 << 63) + 64}, QUERY, "128"),
        "negative": ({"n_elements": -64}, "storage"),
    },
)
def storage_size_lies(folder: Path, said: dict[str, Any]) -> None:
    declare(folder, QUERY, **said)


@refused(RANK, "data/1", "64 x 2", "127")
def record_one_byte_short(folder: Path) -> None:
    rank = rank_file()
    rank.records["data/1"] = rank.records["data/1"][:-1]
    put(folder, rank.members())


@refused(RANK, "data/1", "64 x 2", "129")
def record_one_byte_long(folder: Path) -> None:
    rank = rank_file()
    rank.records["data/1"] += b"\0"
    put(folder, rank.members())


@many(
    RANK,
    {
        "offset-1": ({"offset": 1}, QUERY, "out of bounds"),
        "offset-2-to-the-63": ({"offset": (1 << 63) - 1}, QUERY, "out of bounds"),
        "stride": ({"strides": (9, 1)}, QUERY, "out of bounds"),
        "rows": ({"shape": (9, 8)}, QUERY, "out of bounds"),
        "2-to-the-32-squared": ({"shape": (1 << 32, 1 << 32), "strides": (1 << 32, 1)}, QUERY),
        "stride-2-to-the-63": ({"strides": (1 << 63, 1)}, QUERY, "out of bounds"),
        "negative-offset": ({"offset": -1}, QUERY, "negative"),
        "negative-stride": ({"strides": (8, -1)}, QUERY, "negative"),
        "negative-shape": ({"shape": (-8, -8)}, QUERY, "negative"),
        "expanded-rows": ({"strides": (0, 1)}, QUERY, "expanded", "(8, 8)"),
        "expanded-columns": ({"strides": (1, 0)}, QUERY, "expanded", "(8, 8)"),
        "overlapping-rows": ({"strides": (1, 1)}, QUERY, "expanded", "(8, 8)"),
        "overlapping-by-one": ({"strides": (7, 1)}, QUERY, "expanded", "(8, 8)"),
        "9-dimensions": ({"shape": (1,) * 9, "strides": (1,) * 9}, QUERY, "shape"),
        "shape-and-strides": ({"strides": (8,)}, QUERY, "shape"),
        "0-dimensions": ({"shape": (), "strides": ()}, QUERY, "()"),
        "no-rows": ({"shape": (0, 8)}, QUERY, "(0, 8)"),
        "another-shape": ({"shape": (4, 16), "strides": (16, 1)}, QUERY, "(4, 16)"),
    },
)
def view_lies(folder: Path, said: dict[str, Any]) -> None:
    declare(folder, QUERY, **said)


@many(
    RANK,
    {
        "bool": (raw_tensor(P_8_8, p_tuple(p_int(8), P_TRUE)), QUERY, "invalid"),
        "bool-offset": (raw_tensor(P_8_8, P_8_1, P_FALSE), QUERY, "invalid"),
        "float": (raw_tensor(P_8_8, p_tuple(p_int(8), b"G?\xf0" + bytes(6))), QUERY, "invalid"),
        "text": (raw_tensor(P_8_8, p_str("81")), QUERY, "invalid"),
        "none": (raw_tensor(P_NONE, P_8_1), QUERY, "invalid"),
        "list": (raw_tensor(b"](" + p_int(8) * 2 + b"e", P_8_1), QUERY, "invalid"),
        "nested": (raw_tensor(p_tuple(P_8_8, P_8_8), P_8_1), QUERY, "invalid"),
        "2000-bits": (raw_tensor(P_8_8, P_8_1, p_int(1 << 2000)), "integer"),
    },
)
def numbers_of_other_kinds(folder: Path, tensor: bytes) -> None:
    items = [
        (p_str(QUERY), tensor) if k == p_str(QUERY) else (k, v) for k, v in rank_file().items()
    ]
    put_pickle(folder, p_pickle(p_dict(items)))


@refused(RANK, "data/1", "bfloat16", "float16")
def storage_of_two_dtypes(folder: Path) -> None:
    rank = rank_file()
    rank["layers.0.attention.wk.weight"].key = "1"
    rank["layers.0.attention.wk.weight"].storage = "HalfStorage"
    put(folder, rank.members())


@many(
    RANK,
    {
        kind: (kind, QUERY, f"{kind}Storage")
        for kind in (
            "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat",
            "ComplexDouble", "QInt8", "QUInt8", "QInt32",
        )
    },
)  # fmt: skip
def unsupported_dtype(folder: Path, kind: str) -> None:
    declare(folder, QUERY, storage=f"{kind}Storage")


@many(
    RANK,
    {
        "quantized": (lambda: torch.quantize_per_tensor(torch.ones(8, 8), 0.1, 0, torch.qint8), "unsupported kind", "_rebuild_qtensor"),
        "float8": (lambda: torch.ones(8, 8).to(torch.float8_e4m3fn), "unsupported kind", "_rebuild_tensor_v3", "float8_e4m3fn"),
        "uint16": (lambda: torch.ones(8, 8, dtype=torch.uint16), "unsupported kind", "_rebuild_tensor_v3"),
        "sparse": (lambda: torch.eye(8).to_sparse(), "unsupported kind", "_rebuild_sparse_tensor"),
        "meta": (lambda: torch.ones(8, 8, device="meta"), "unsupported kind", "_rebuild_meta_tensor_no_storage"),
    },
)  # fmt: skip
def unsupported_tensor(folder: Path, make: Callable[[], torch.Tensor]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(STATE | {QUERY: make()}, folder / RANK)


@refused(RANK, "float32", "bfloat16")
def one_tensor_of_another_dtype(folder: Path) -> None:
    torch.save(STATE | {QUERY: STATE[QUERY].float()}, folder / RANK)


@many(
    RANK,
    {
        "nested-too-deep": ({"a": {"b": {"c": {"model": STATE}}}}, "'a'", "nested dict"),
        "nested-beside-another": ({"model": STATE, "ema": STATE}, "2 dicts", "'model', 'ema'"),
        "extra-int": (STATE | {"step": 7}, "'step'", "int"),
        "extra-list": (STATE | {"losses": [1.0]}, "'losses'", "list"),
        "extra-none": (STATE | {"optimizer": None}, "'optimizer'", "None"),
        "extra-text": (STATE | {"name": "x" * 1000}, "'name'", "str"),
        "list": (list(STATE.values()), "list"),
        "tensor": (STATE[QUERY], "tensor"),
        "empty": ({}, "missing"),
        "hugging-face-names": ({"model.embed_tokens.weight": STATE[QUERY]}, "Hugging Face"),
        "prefix-of-some": ({k if k == NORM else f"m.{k}": v for k, v in STATE.items()}, "'m.'", NORM),
        "extra-tensor": (STATE | {"lora_A.weight": STATE[QUERY].clone()}, "'lora_A.weight'", "(8, 8)"),
        "missing-tensor": ({k: v for k, v in STATE.items() if k != NORM}, NORM, "missing"),
        "long-name": (STATE | {"x" * 257: STATE[QUERY]}, "257"),
    },
)  # fmt: skip
def another_structure(folder: Path, saved: Any) -> None:
    torch.save(saved, folder / RANK)


@accepted("the tensors lie under 'model'; ignored: 'optimizer'", "begins with 'module.'")
def another_structure_of_a_trainer(folder: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    torch.save({"model": state, "optimizer": {"state": {0: STATE[QUERY]}}}, folder / RANK)
