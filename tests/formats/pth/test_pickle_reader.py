"""The pickle machine reads what torch.save writes, and runs nothing."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
import torch

from codellama_convert.formats.pth.pickle_beside import Inert
from codellama_convert.formats.pth.pickle_names import (
    DeclaredStorage,
    OrderedItems,
    OtherTensor,
    RefusedPickle,
    View,
)
from codellama_convert.formats.pth.pickle_reader import parse_pickle
from codellama_convert.tensors import DTYPES
from tests.faults.hostile.rank_bytes import (
    P_FALSE,
    P_NONE,
    P_ORDERED_DICT,
    STATE,
    p_call,
    p_dict,
    p_global,
    p_int,
    p_pickle,
    p_stack_global,
    p_storage,
    p_str,
    p_tuple,
    rank_file,
)

BFLOAT16 = next(dtype for dtype in DTYPES if dtype.storage == "BFloat16Storage")

# Every opcode that pickles of protocols 2 to 5 need for a state dict; all others are refused.
ALLOWED = {
    "PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "TUPLE", "MARK", "EMPTY_DICT", "EMPTY_LIST", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL",
    "BINPERSID", "REDUCE", "BUILD",
    # Of a trainer's state beside it: passed over.
    "EMPTY_SET", "ADDITEMS", "FROZENSET", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def plain(value: Any) -> Any:
    """Turn tokens of ordered dicts into dicts, to compare with."""
    if type(value) is OrderedItems:
        return {key: plain(item) for key, item in value.content.items()}
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": -1, "c": 256, "d": 65536, "e": 2**40, "f": -(2**62)},
        {"none": None, "yes": True, "no": False, "real": 0.5},
        {"tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
        {"list": [1, "two", [3]], "one": ["x"]},
        {"nested": {"a": {"b": {}}}, "text": "\u00fc \U0001f600", "long": "x" * 300},
        {f"key {number}": number for number in range(2000)},
    ],
)
def test_plain_values_of_every_protocol_are_read(protocol: int, value: Any) -> None:
    assert parse_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_ordered_dicts_and_shared_values_are_read(protocol: int) -> None:
    shared = ("x", 1)
    value = OrderedDict({"a": shared, "b": shared, "c": OrderedDict()})
    parsed = parse_pickle(pickle.dumps(value, protocol=protocol))
    assert plain(parsed) == {"a": shared, "b": shared, "c": {}}
    assert parsed.content["a"] is parsed.content["b"]


def test_a_tensor_becomes_a_view_of_a_declared_storage() -> None:
    parsed = parse_pickle(rank_file().pickled())
    storage = DeclaredStorage(BFLOAT16, "1", 64)
    assert parsed["layers.0.attention.wq.weight"] == View(storage, 0, (8, 8), (8, 1))


_NORM = str(list(STATE).index("norm.weight"))  # the name of its storage


def _view_call() -> bytes:
    return rank_file()["norm.weight"].pickled()


_VIEW = View(DeclaredStorage(BFLOAT16, _NORM, 8), 0, (8,), (1,))


@pytest.mark.parametrize(
    "value",
    [
        _view_call(),
        p_call(p_global("torch._utils", "_rebuild_parameter"), _view_call(), P_FALSE, P_ORDERED_DICT),
        p_call(p_global("torch._utils", "_rebuild_parameter_with_state"), _view_call(), P_FALSE, P_ORDERED_DICT, b"}"),
        _view_call().replace(p_global("torch._utils", "_rebuild_tensor_v2"), p_stack_global("torch._utils", "_rebuild_tensor_v2")),
    ],
)  # fmt: skip
def test_every_way_to_wrap_a_tensor_gives_the_same_view(value: bytes) -> None:
    assert parse_pickle(p_pickle(p_dict([(p_str("a"), value)]))) == {"a": _VIEW}


def test_a_tensor_with_attributes_is_the_tensor() -> None:
    inner = p_tuple(
        p_storage("BFloat16Storage", _NORM, 8),
        p_int(0),
        p_tuple(p_int(8)),
        p_tuple(p_int(1)),
        P_FALSE,
        P_ORDERED_DICT,
    )
    call = p_call(
        p_global("torch._tensor", "_rebuild_from_type_v2"),
        p_global("torch._utils", "_rebuild_tensor_v2"),
        p_global("torch", "Tensor"),
        inner,
        p_dict([(p_str("partition_dim"), p_int(0))]),
    )
    assert parse_pickle(p_pickle(call)) == _VIEW


def test_metadata_of_a_state_dict_is_passed_over() -> None:
    state = p_dict([(p_str("_metadata"), P_ORDERED_DICT)])
    parsed = parse_pickle(p_pickle(P_ORDERED_DICT + p_str("a") + p_int(1) + b"s" + state + b"b"))
    assert plain(parsed) == {"a": 1}


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_only_the_opcodes_of_a_state_dict_are_allowed(opcode: pickletools.OpcodeInfo) -> None:
    """Every opcode there is, in front of a good pickle: a refused one is named."""
    lines = {
        "decimalnl_short": b"1\n",
        "decimalnl_long": b"1L\n",
        "floatnl": b"1\n",
        "stringnl": b"'a'\n",
        "stringnl_noescape": b"a\n",
        "stringnl_noescape_pair": b"os\nsystem\n",
        "unicodestringnl": b"a\n",
    }
    argument = b""
    if opcode.arg is not None:
        n_bytes = {-2: 1, -3: 4, -4: 4, -5: 8}  # of the length field, which is then zero
        argument = lines.get(opcode.arg.name) or bytes(n_bytes.get(opcode.arg.n, opcode.arg.n))
    pickled = b"\x80\x02" + opcode.code.encode("latin-1") + argument
    if opcode.name in ALLOWED:
        try:
            parse_pickle(pickled + b"N.")
        except RefusedPickle as problem:
            told = str(problem)
            assert f"opcode {opcode.name}" not in told
        return
    with pytest.raises(RefusedPickle) as caught:
        parse_pickle(pickled + b"N.")
    assert (opcode.name if opcode.name != "INST" else "os.system") in str(caught.value)
    assert caught.value.hint is not None
    assert "Nothing was executed" in caught.value.hint


def test_opcodes_up_to_the_limit_are_read() -> None:
    body = b"](" + b"N" * 199_994 + b"e"
    assert len(parse_pickle(p_pickle(body))) == 199_994
    with pytest.raises(RefusedPickle, match="opcodes"):
        parse_pickle(p_pickle(b"](" + b"N" * 199_996 + b"e"))


def test_integers_up_to_64_bits_are_read() -> None:
    assert parse_pickle(p_pickle(p_int((1 << 64) - 1))) == (1 << 64) - 1
    assert parse_pickle(p_pickle(p_int(1 << 64))) == Inert("an integer of more than 64 bits")


def test_a_refused_argument_is_not_decoded() -> None:
    """Its million digits took minutes where Python does not limit them."""
    with pytest.raises(RefusedPickle, match="LONG"):
        parse_pickle(b"\x80\x02L" + b"9" * 1_000_000)


def test_bytes_behind_stop_are_not_read() -> None:
    assert parse_pickle(p_pickle(P_NONE) + b"cos\nsystem\n") is None


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        (torch.float8_e4m3fn, "quantised weights"),
        (torch.float8_e5m2, "quantised weights"),
        (torch.uint16, "files that Meta released"),
    ],
)
def test_a_dtype_without_a_storage_class_is_named(dtype: torch.dtype, hint: str) -> None:
    """Weights in fp8 were a tensor of an unsupported kind, named by a function of torch."""
    with io.BytesIO() as file:
        torch.save({"w": torch.ones(2, 2).to(dtype)}, file)
        pickled = zipfile.ZipFile(file).read("archive/data.pkl")
    tensor = parse_pickle(pickled)["w"]
    assert type(tensor) is OtherTensor
    assert tensor.what.endswith(f"(_rebuild_tensor_v3 of dtype {str(dtype)[6:]})")
    assert hint in tensor.hint
