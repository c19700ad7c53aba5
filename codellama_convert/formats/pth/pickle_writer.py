"""Own the bytes of data.pkl: what CPython's pickler makes of a flat dict of tensors.

Equal bytes need more than equal meaning: what is memoized, which objects are the same, and where a
batch of items ends are CPython's and torch's own habits.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator, Sequence

from codellama_convert.formats.pth.saved_rank import SavedRank, SavedTensor

# Source: CPython's Modules/_pickle.c, `batch_dict` and `batch_dict_exact`.
_BATCH_ITEMS = 1000

# Opcodes of protocol 2, source: CPython's Lib/pickletools.py.
_MARK, _SET_ITEM, _SET_ITEMS = b"(", b"s", b"u"
_EMPTY_TUPLE, _TUPLES, _LONG_TUPLE = b")", (b"\x85", b"\x86", b"\x87"), b"t"
_PUT, _GET = (b"q", b"r"), (b"h", b"j")
_NEW_FALSE, _PERSISTENT_ID, _REDUCE, _STOP = b"\x89", b"Q", b"R", b"."

_ORDERED_DICT = "collections", "OrderedDict"
_REBUILD_TENSOR = "torch._utils", "_rebuild_tensor_v2"


def encode_pickle(rank: SavedRank) -> bytes:
    """Build data.pkl.

    Args:
        rank: What is saved, checked by `storage_dtypes`.

    Returns:
        The bytes that torch.save writes for it, in protocol 2.
    """
    pickle = _Pickle()
    if rank.container == "dict":
        pickle.new(b"}")
    else:
        pickle.known_global(_ORDERED_DICT)
        pickle.new(_EMPTY_TUPLE + _REDUCE)
    for batch, single in _batches(rank):
        pickle.add(b"" if single else _MARK)
        for tensor in batch:
            pickle.text(tensor.spec.name)
            _add_tensor(pickle, rank, tensor)
        pickle.add(_SET_ITEM if single else _SET_ITEMS)
    pickle.add(_STOP)
    return bytes(pickle.encoded)


def _batches(rank: SavedRank) -> Iterator[tuple[Sequence[SavedTensor], bool]]:
    """Yield the items of each batch, and whether it is a single item without a mark."""
    n_tensors = len(rank.tensors)
    for start in range(0, n_tensors, _BATCH_ITEMS):
        batch = rank.tensors[start : start + _BATCH_ITEMS]
        # A dict knows its size and looks for a single item once; others look one item ahead.
        alone = n_tensors if rank.container == "dict" else len(batch)
        yield batch, alone == 1
    if rank.container == "dict" and n_tensors % _BATCH_ITEMS == 0:
        yield (), False  # a full batch is followed by another one, even an empty one


def _add_tensor(pickle: _Pickle, rank: SavedRank, tensor: SavedTensor) -> None:
    """Add a call of torch's `_rebuild_tensor_v2`, source: torch's `Tensor._reduce_ex_internal`."""
    pickle.known_global(_REBUILD_TENSOR)
    pickle.add(_MARK)
    _add_storage(pickle, rank, tensor)
    pickle.number(tensor.storage_offset)
    pickle.numbers(tensor.spec.shape)
    pickle.numbers(tensor.strides)
    pickle.add(_NEW_FALSE)  # requires_grad
    pickle.known_global(_ORDERED_DICT)  # backward hooks
    pickle.new(_EMPTY_TUPLE + _REDUCE)
    pickle.new(_LONG_TUPLE)
    pickle.new(_REDUCE)


def _add_storage(pickle: _Pickle, rank: SavedRank, tensor: SavedTensor) -> None:
    """Add the persistent id of a storage, source: torch's serialization.py, `persistent_id`."""
    pickle.add(_MARK)
    pickle.known_text("storage")
    pickle.known_global(("torch", tensor.spec.dtype.storage))
    pickle.known_text(str(tensor.storage), owner=tensor.storage)
    if ":" in rank.location:
        pickle.text(rank.location)  # torch joins name and index again for each tensor
    else:
        pickle.known_text(rank.location)
    pickle.number(rank.storage_elements[tensor.storage])
    pickle.new(_LONG_TUPLE)
    pickle.add(_PERSISTENT_ID)


class _Pickle:
    """A pickle under way, and the memo of what it can refer to.

    Attributes:
        encoded: The bytes so far.
    """

    def __init__(self) -> None:
        self.encoded = bytearray(b"\x80\x02")
        self._memo: dict[Hashable, int] = {}
        self._n_memoized = 0

    def add(self, opcodes: bytes) -> None:
        """Add what is not memoized."""
        self.encoded += opcodes

    def new(self, opcodes: bytes) -> int:
        """Add an object and memoize it, as every one is that has an identity."""
        number = self._n_memoized
        self.encoded += opcodes
        self.encoded += _numbered(_PUT, number)
        self._n_memoized += 1
        return number

    def _known(self, key: Hashable, opcodes: bytes) -> None:
        """Add an object when it is met first, and a reference to it from then on."""
        number = self._memo.get(key)
        if number is None:
            self._memo[key] = self.new(opcodes)
        else:
            self.encoded += _numbered(_GET, number)

    def known_global(self, name: tuple[str, str]) -> None:
        """Add a class or function, by module and name."""
        self._known(("global", *name), "c{}\n{}\n".format(*name).encode())

    def known_text(self, text: str, *, owner: Hashable = None) -> None:
        """Add a string that is one object wherever its owner is met."""
        self._known(("text", owner, text), _text(text))

    def text(self, text: str) -> None:
        """Add a string that is an object of its own, whatever others are equal to it."""
        self.new(_text(text))

    def number(self, number: int) -> None:
        """Add a non-negative int in its shortest form."""
        if number < 1 << 8:
            self.encoded += struct.pack("<cB", b"K", number)
        elif number < 1 << 16:
            self.encoded += struct.pack("<cH", b"M", number)
        elif number < 1 << 31:
            self.encoded += struct.pack("<ci", b"J", number)
        else:
            n_bytes = number.bit_length() // 8 + 1  # with a sign
            self.encoded += struct.pack("<cB", b"\x8a", n_bytes) + number.to_bytes(
                n_bytes, "little"
            )

    def numbers(self, numbers: Sequence[int]) -> None:
        """Add a tuple of ints."""
        if not numbers:
            self.encoded += _EMPTY_TUPLE
            return
        is_long = len(numbers) > len(_TUPLES)
        self.encoded += _MARK if is_long else b""
        for number in numbers:
            self.number(number)
        self.new(_LONG_TUPLE if is_long else _TUPLES[len(numbers) - 1])


def _numbered(opcodes: tuple[bytes, bytes], number: int) -> bytes:
    """Refer to the memo: one byte holds a small number, four any other."""
    if number < 1 << 8:
        return struct.pack("<cB", opcodes[0], number)
    return struct.pack("<cI", opcodes[1], number)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")  # as CPython's pickler does
    return struct.pack("<cI", b"X", len(encoded)) + encoded
