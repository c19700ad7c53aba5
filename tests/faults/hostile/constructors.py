"""What a pickled tensor says beside its view: parameters, states, hooks, metadata."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from tests.faults.hostile.case import accepted, many, refused
from tests.faults.hostile.rank_bytes import (
    EMBEDDING,
    P_FALSE,
    P_NONE,
    P_ORDERED_DICT,
    P_TRUE,
    QUERY,
    RANK,
    STATE,
    TINY,
    p_call,
    p_dict,
    p_global,
    p_int,
    p_pickle,
    p_str,
    p_tuple,
    put_pickle,
    rank_file,
)
from tests.witness.checkpoints import save_checkpoint


@accepted()
def parameters(folder: Path) -> None:
    save_checkpoint(folder, TINY, STATE, as_parameters=True, tokenizer=False)


@refused(RANK, EMBEDDING, "state of _rebuild_parameter_with_state", "'tensor_model_parallel'")
def parameters_with_state(folder: Path) -> None:
    """torch sets each attribute of the state, and one named `data` would replace the values."""
    saved = {n: torch.nn.Parameter(t, requires_grad=False) for n, t in STATE.items()}
    for parameter in saved.values():
        parameter.tensor_model_parallel = True
    torch.save(saved, folder / RANK)


@refused(RANK, EMBEDDING, "state of _rebuild_from_type_v2", "'partition_dim'")
def rebuild_from_type_v2(folder: Path) -> None:
    """Tensors with attributes, as torch.save writes a plain one that got any."""
    saved = {name: tensor.clone() for name, tensor in STATE.items()}
    for tensor in saved.values():
        tensor.partition_dim = 0
    torch.save(saved, folder / RANK)
    with zipfile.ZipFile(folder / RANK) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"_rebuild_from_type_v2" in pickled


def _negated(tensor: torch.Tensor) -> torch.Tensor:
    """Let torch write the bytes of -tensor, and that they are to be negated."""
    return torch._neg_view(tensor.neg())


@refused(RANK, QUERY, "metadata of _rebuild_tensor_v2", "'neg'", "resolve_neg")
def lazily_negated(folder: Path) -> None:
    torch.save(STATE | {QUERY: _negated(STATE[QUERY])}, folder / RANK)


@accepted()
def lazily_negated_and_resolved(folder: Path) -> None:
    torch.save(STATE | {QUERY: _negated(STATE[QUERY]).resolve_neg()}, folder / RANK)


def _rebuilt(**said: bytes) -> bytes:
    """Spell the query matrix with other arguments behind the strides."""
    rank = rank_file()
    arguments = {"requires_grad": P_FALSE, "backward_hooks": P_ORDERED_DICT} | said
    tensor = rank[QUERY].pickled()
    plain = P_FALSE + P_ORDERED_DICT + b"tR"
    assert tensor.endswith(plain)
    return tensor.removesuffix(plain) + b"".join(arguments.values()) + b"tR"


def _put_query(folder: Path, query: bytes) -> None:
    rank = rank_file()
    items = [(p_str(t.name), query if t.name == QUERY else t.pickled()) for t in rank.tensors]
    put_pickle(folder, p_pickle(p_dict(items)))


_FULL = p_dict([(p_str("x"), P_NONE)])
_PARAMETER = p_global("torch._utils", "_rebuild_parameter")
_WITH_STATE = p_global("torch._utils", "_rebuild_parameter_with_state")
_FROM_TYPE = p_global("torch._tensor", "_rebuild_from_type_v2")


def _from_type(kind: bytes, state: bytes) -> bytes:
    inner = p_tuple(_rebuilt(), P_FALSE, P_ORDERED_DICT)
    return p_call(_FROM_TYPE, _PARAMETER, kind, inner, state)


_PARAMETER_TYPE = p_global("torch.nn.parameter", "Parameter")


@many(
    RANK,
    {
        "metadata-conj": (_rebuilt(metadata=p_dict([(p_str("conj"), P_TRUE)])), QUERY, "metadata of _rebuild_tensor_v2", "'conj'"),
        "metadata-list": (_rebuilt(metadata=b"]Na"), QUERY, "metadata of _rebuild_tensor_v2"),
        "metadata-number": (_rebuilt(metadata=p_int(0)), QUERY, "metadata of _rebuild_tensor_v2"),
        "metadata-twice": (_rebuilt(metadata=b"}", more=b"}"), "_rebuild_tensor_v2", "unknown way"),
        "hooks": (_rebuilt(backward_hooks=P_ORDERED_DICT + p_str("x") + b"Ns"), QUERY, "backward_hooks of _rebuild_tensor_v2", "'x'"),
        "requires-grad-tensor": (_rebuilt(requires_grad=p_str("yes")), "_rebuild_tensor_v2", "unknown way"),
        "parameter-hooks": (p_call(_PARAMETER, _rebuilt(), P_FALSE, _FULL), QUERY, "backward_hooks of _rebuild_parameter"),
        "parameter-of-negated": (p_call(_PARAMETER, _rebuilt(metadata=_FULL), P_FALSE, P_ORDERED_DICT), QUERY, "metadata of _rebuild_tensor_v2"),
        "parameter-hooks-with-state": (p_call(_WITH_STATE, _rebuilt(), P_FALSE, _FULL, P_NONE), QUERY, "backward_hooks of _rebuild_parameter_with_state"),
        "from-type-state-pair": (_from_type(_PARAMETER_TYPE, p_tuple(P_NONE, _FULL)), QUERY, "state of _rebuild_from_type_v2"),
        "from-another-type": (_from_type(p_global("collections", "OrderedDict"), P_NONE), "_rebuild_from_type_v2", "unknown way"),
        "from-type-of-dict": (p_call(_FROM_TYPE, p_global("collections", "OrderedDict"), _PARAMETER_TYPE, b")", P_NONE), "_rebuild_from_type_v2", "unknown way"),
        "on-meta": (_rebuilt().replace(p_str("cpu"), p_str("meta")), "storage 1", "'meta'"),
    },
)  # fmt: skip
def tensor_says_more(folder: Path, query: bytes) -> None:
    """Each is an argument that torch applies to the tensor, or one that it does not take."""
    _put_query(folder, query)


@refused(RANK, QUERY, "backward_hooks of _rebuild_tensor_v2", "'later'")
def hooks_are_filled_after_the_tensor_was_made(folder: Path) -> None:
    """They are empty when the constructor is called; an item is put in by a later opcode."""
    query = _rebuilt(backward_hooks=P_ORDERED_DICT + b"q\xc8")
    metadata = b"h\xc8" + p_str("later") + b"Ns"
    rank = rank_file()
    state = p_dict([(p_str("_metadata"), metadata)])
    items = b"".join(
        p_str(t.name) + (query if t.name == QUERY else t.pickled()) + b"s" for t in rank.tensors
    )
    put_pickle(folder, p_pickle(P_ORDERED_DICT + items + state + b"b"))


for _name, _query in {
    "tensor_says_nothing": _rebuilt(metadata=P_NONE),
    "tensor_says_nothing_in_a_dict": _rebuilt(metadata=b"}"),
    "tensor_without_hooks": _rebuilt(backward_hooks=P_NONE),
    "tensor_requires_grad": _rebuilt(requires_grad=P_TRUE),
    "parameter_without_state": p_call(_WITH_STATE, _rebuilt(), P_TRUE, P_ORDERED_DICT, P_NONE),
    "parameter_of_empty_state": p_call(_WITH_STATE, _rebuilt(), P_TRUE, P_ORDERED_DICT, b"}"),
    "from_type_without_state": _from_type(_PARAMETER_TYPE, b"}"),
}.items():

    def _says_nothing(folder: Path, query: bytes = _query) -> None:
        _put_query(folder, query)

    _says_nothing.__name__ = _name
    accepted()(_says_nothing)
