"""Pickles that attack: what they call, what they cost, what they are made of."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.faults.hostile.case import many, refused
from tests.faults.hostile.rank_bytes import (
    NORM,
    P_8_1,
    P_8_8,
    P_FALSE,
    P_NONE,
    P_ORDERED_DICT,
    P_TRUE,
    RANK,
    declare,
    p_call,
    p_dict,
    p_global,
    p_int,
    p_pickle,
    p_stack_global,
    p_storage,
    p_str,
    p_tuple,
    put_pickle,
    rank_file,
    raw_tensor,
)


def _command(folder: Path) -> str:
    return f"touch {folder.parent / 'canary'}"


def _with_item(value: bytes, key: bytes | None = None) -> bytes:
    return p_dict([*rank_file().items(), (key or p_str("evil"), value)])


@refused(RANK, "os.system", "not allowed", "Nothing was executed", armed=True)
def malicious_reduce(folder: Path) -> None:
    put_pickle(
        folder, p_pickle(_with_item(p_call(p_global("os", "system"), p_str(_command(folder)))))
    )


@refused(RANK, "posix.system", "not allowed", armed=True)
def malicious_reduce_protocol_4(folder: Path) -> None:
    call = p_call(p_stack_global("posix", "system"), p_str(_command(folder)))
    put_pickle(folder, p_pickle(_with_item(call), protocol=4))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_inst(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b"(" + p_str(_command(folder)) + b"ios\nsystem\n")))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_obj(folder: Path) -> None:
    call = b"(" + p_global("os", "system") + p_str(_command(folder)) + b"o"
    put_pickle(folder, p_pickle(_with_item(call)))


@refused(RANK, "builtins.eval", "not allowed", armed=True)
def malicious_key(folder: Path) -> None:
    call = p_call(
        p_global("builtins", "eval"), p_str(f"__import__('os').system('{_command(folder)}')")
    )
    put_pickle(folder, p_pickle(_with_item(P_NONE, key=call)))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_before_the_dict(folder: Path) -> None:
    call = p_call(p_global("os", "system"), p_str(_command(folder)))
    put_pickle(folder, p_pickle(call + b"0" + p_dict(rank_file().items())))


@refused(RANK, "os.system", "not allowed")
def malicious_inner_function(folder: Path) -> None:
    """The function that `_rebuild_from_type_v2` calls."""
    call = p_call(
        p_global("torch._tensor", "_rebuild_from_type_v2"),
        p_global("os", "system"),
        p_global("torch", "Tensor"),
        p_tuple(p_str(_command(folder))),
        P_NONE,
    )
    put_pickle(folder, p_pickle(_with_item(call)))


@refused(RANK, "_rebuild_from_type_v2", "unknown way")
def rebuild_in_rebuild(folder: Path) -> None:
    rebuild, tensor = (
        p_global("torch._tensor", "_rebuild_from_type_v2"),
        p_global("torch", "Tensor"),
    )
    inner = P_NONE
    for _ in range(50):
        inner = p_tuple(rebuild, tensor, inner if inner != P_NONE else b")", P_NONE)
    put_pickle(folder, p_pickle(_with_item(rebuild + inner + b"R")))


@many(
    RANK,
    {
        "dotted": (("torch", "storage.os.system"), "torch.storage.os.system"),
        "other-module": (("os", "_rebuild_tensor_v2"), "os._rebuild_tensor_v2"),
        "torch-load": (("torch", "load"), "torch.load"),
        "load-from-bytes": (("torch.storage", "_load_from_bytes"), "_load_from_bytes"),
        "getattr": (("builtins", "getattr"), "builtins.getattr"),
        "empty": (("", ""), "not allowed"),
        "spaces": (("collections OrderedDict", ""), "not allowed"),
        "long": (("x" * 50_000, "y" * 50_000), "xxxxxxxx"),
        "newline-escape": (("a\x1b[31m", "b"), "not allowed"),
    },
)
def refused_name(folder: Path, pair: tuple[str, str]) -> None:
    put_pickle(folder, p_pickle(_with_item(p_global(*pair))))


@many(
    RANK,
    {
        "persid-text": (b"Pos.system\n", "PERSID"),
        "persid-string": (p_str("os.system") + b"Q", "storage"),
        "persid-module": (p_tuple(p_str("module"), p_global("torch", "Tensor"), p_str("0")) + b"Q", "storage"),
        "storage-key-dots": (p_storage("FloatStorage", "../3", 2), "storage"),
        "storage-key-digits": (p_storage("FloatStorage", "\u0663", 2), "storage"),
        "storage-key-long": (p_storage("FloatStorage", "0" * 30_000, 2), "storage"),
        "storage-of-function": (p_tuple(p_str("storage"), p_str("FloatStorage"), p_str("0"), p_str("cpu"), p_int(2)) + b"Q", "storage"),
        "storage-bool-size": (p_tuple(p_str("storage"), p_global("torch", "FloatStorage"), p_str("0"), p_str("cpu"), P_TRUE) + b"Q", "storage"),
        "storage-view-metadata": (p_tuple(p_str("storage"), p_global("torch", "FloatStorage"), p_str("0"), p_str("cpu"), p_int(2), p_tuple(p_str("1"), p_int(0), p_int(2))) + b"Q", "storage"),
        "newobj": (p_global("collections", "OrderedDict") + b")\x81", "NEWOBJ"),
        "newobj-ex": (p_global("collections", "OrderedDict") + b")}\x92", "NEWOBJ_EX"),
        "obj": (b"(" + p_global("collections", "OrderedDict") + b"o", "OBJ"),
        "ext1": (b"\x82\x01", "EXT1"),
        "ext2": (b"\x83\x01\x00", "EXT2"),
        "ext4": (b"\x84\x01\x00\x00\x00", "EXT4"),
        "set": (b"\x8f", "EMPTY_SET"),
        "frozenset": (b"(\x91", "FROZENSET"),
        "bytes": (b"C\x01a", "SHORT_BINBYTES"),
        "bytearray": (b"\x96" + struct.pack("<Q", 1) + b"a", "BYTEARRAY8"),
        "next-buffer": (b"\x97", "NEXT_BUFFER"),
        "pop": (b"N0N", "POP"),
        "dup": (b"N2", "DUP"),
        "text-int": (b"I7\n", "INT"),
        "text-long": (b"L" + b"9" * 100_000 + b"L\n", "LONG"),
        "text-float": (b"F1.5\n", "FLOAT"),
        "text-string": (b"S'a'\n", "STRING"),
        "text-string-escape": (b"S'\\q'\n", "STRING"),
        "text-unicode": (b"Va\n", "UNICODE"),
        "text-get": (b"g0\n", "GET"),
        "text-put": (b"Np0\n", "PUT"),
        "text-dict": (b"(d", "DICT"),
        "text-list": (b"(l", "LIST"),
        "binstring": (b"U\x01a", "SHORT_BINSTRING"),
        "ordered-dict-of-items": (p_call(p_global("collections", "OrderedDict"), b"]"), "OrderedDict"),
        "call-of-storage": (p_call(p_global("torch", "FloatStorage")), "FloatStorage"),
        "call-of-text": (p_call(p_str("os.system")), "calls"),
        "call-without-tuple": (p_global("collections", "OrderedDict") + b"]R", "calls"),
        "rebuild-too-few": (p_call(p_global("torch._utils", "_rebuild_tensor_v2"), P_NONE), "_rebuild_tensor_v2"),
        "rebuild-no-storage": (p_call(p_global("torch._utils", "_rebuild_tensor_v2"), P_NONE, p_int(0), b")", b")", P_FALSE, P_ORDERED_DICT), "_rebuild_tensor_v2"),
        "parameter-of-none": (p_call(p_global("torch._utils", "_rebuild_parameter"), P_NONE, P_FALSE, P_ORDERED_DICT), "_rebuild_parameter"),
        "state-of-list": (b"]}b", "state"),
        "state-is-list": (P_ORDERED_DICT + b"]b", "state"),
        "memo-unknown": (b"h\xff", "memo"),
        "memo-of-mark": (b"(q\x00t", "damaged"),
        "append-to-dict": (b"}Na", "append"),
        "items-for-list": (b"](p_strNu"[:2] + b"u", "items"),
        "odd-items": (b"}(" + p_str("a") + b"u", "items"),
        "no-mark": (b"t" * 60, "damaged"),
        "key-twice": (p_dict([(p_str("a"), P_NONE), (p_str("a"), P_NONE)]), "'a'", "twice"),
        "key-int": (p_dict([(p_int(1), P_NONE)]), "'evil'", "nested dict"),
        "key-none": (p_dict([(P_NONE, P_NONE)]), "dict key"),
        "key-tensor": (p_dict([(raw_tensor(P_8_8, P_8_1), P_NONE)]), "dict key"),
        "surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80", "'evil'"),
        "unknown-opcode": (b"\xff", "damaged"),
        "second-value": (P_NONE + P_NONE, "damaged"),
    },
)  # fmt: skip
def refused_pickle(folder: Path, value: bytes) -> None:
    put_pickle(folder, p_pickle(_with_item(value)))


@many(
    RANK,
    {
        "no-stop": (b"\x80\x02}", "damaged"),
        "empty-stack": (b"\x80\x02.", "damaged"),
        "mark-left": (b"\x80\x02}(.", "damaged"),
        "only-mark": (b"\x80\x02(.", "damaged"),
        "empty": (b"", "damaged"),
        "text": (b"hello world", "damaged"),
        "string-past-the-end": (b"\x80\x02X\xff\xff\xff\x7f.", "damaged"),
        "string-of-4-gb": (b"\x80\x04\x8d" + struct.pack("<Q", 4 << 30) + b".", "damaged"),
        "string-of-2-to-the-63": (b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b".", "damaged"),
        "long-past-the-end": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
        "long-of-negative-size": (b"\x80\x02\x8b\xff\xff\xff\xff.", "damaged"),
        "not-utf-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
        "line-without-end": (b"\x80\x02cos", "damaged"),
        "protocol-6": (p_pickle(p_dict(rank_file().items()), 6), "protocol 6"),
    },
    bomb=True,
)  # fmt: skip
def torn_pickle(folder: Path, pickled: bytes) -> None:
    put_pickle(folder, pickled)


@refused(RANK, "dict key", bomb=True)
def tuple_key_bomb(folder: Path) -> None:
    """A key of 60 nested pairs, each twice the one before: hashing it takes 2 ** 60 steps."""
    key = b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    put_pickle(folder, p_pickle(b"}" + key + b"Ns"))


@refused(RANK, "'evil'", "tuple", bomb=True)
def memo_of_doubling_tuples(folder: Path) -> None:
    value = b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    put_pickle(folder, p_pickle(_with_item(value)))


@refused(RANK, "'evil'", "None", bomb=True)
def memo_key_of_4_billion(folder: Path) -> None:
    """Nine bytes that cost pickle.loads 4 GB."""
    put_pickle(folder, p_pickle(_with_item(b"Nr\xff\xff\xff\xff")))


@refused(RANK, "'evil'", "list", bomb=True)
def as_many_lists_as_possible(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b"](" + b"]" * 199_000 + b"e")))


@refused(RANK, "'evil'", "tuple", bomb=True)
def tuples_190_000_deep(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b")" + b"\x85" * 190_000)))


@refused(RANK, "opcodes", bomb=True)
def two_million_opcodes(folder: Path) -> None:
    put_pickle(folder, p_pickle(b"}" * 2_000_000))


@refused(RANK, "implausible size", str((2 << 20) + 1), bomb=True)
def pickle_one_byte_too_large(folder: Path) -> None:
    put_pickle(folder, p_pickle(p_str(b"x" * ((2 << 20) + 1 - 8))))


@refused(RANK, "holds a str", bomb=True)
def string_of_2_mb(folder: Path) -> None:
    """Every character takes four bytes once one of them is not ASCII."""
    text = "x" * ((2 << 20) - 8 - 4) + "\U0001f600"
    put_pickle(folder, p_pickle(p_str(text)))


@refused(RANK, "opcodes", bomb=True)
def many_dicts(folder: Path) -> None:
    put_pickle(folder, p_pickle(b"}q\x00" * 110_000))


@refused(RANK, "'0'", "nested dict", bomb=True)
def one_dict_in_20_000_places(folder: Path) -> None:
    """Gone through in each of them, it takes minutes; what it holds is such a dict again."""
    held = b"N"  # memo 0 is the innermost dict, memo 1 the one around it
    for memo in range(3):
        again = held if memo == 0 else b"h%c" % (memo - 1)
        keys = (p_str(str(n)) for n in range(20_000))
        first = next(keys) + held
        rest = b"".join(key + again for key in keys)
        held = b"}q%c(" % memo + first + rest + b"u"
    put_pickle(folder, p_pickle(held))


@refused(RANK, "integer", bomb=True)
def integer_of_2_mb(folder: Path) -> None:
    size = (2 << 20) - 20
    put_pickle(folder, p_pickle(b"\x8b" + struct.pack("<i", size) + b"\x7f" * size))


@refused(RANK, "LONG", bomb=True)
def text_integer_of_2_mb(folder: Path) -> None:
    """int() of that many digits takes minutes where Python does not limit it."""
    put_pickle(folder, p_pickle(b"L" + b"7" * ((2 << 20) - 20) + b"L\n"))


@refused(RANK, "out of bounds", NORM, bomb=True)
def reach_beyond_a_small_storage(folder: Path) -> None:
    declare(folder, NORM, strides=(1 << 40,))
