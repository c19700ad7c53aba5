"""Own the fuzzing of numbers: each numeric field of every format, at and beside powers of two.

Every case follows from the seed and its number.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from tests.faults.hostile import rank_bytes
from tests.faults.hostile.rank_bytes import p_dict, p_int, p_pickle, p_str
from tests.faults.hostile.zip_bytes import write_zip, zip64_extra
from tests.fuzzers.fuzz_child import Child
from tests.fuzzers.running import contiguous, scratch_folder
from tests.witness.checkpoints import expected_state_dict, save_checkpoint, tokenizer_model

RIGHT = {"exact", "done", "refused", "found", "unseen"}
_WIDTHS = (31, 32, 53, 63, 64)
NUMBERS = sorted(
    {0, 1, 2, -1, -2, 127, 128, 255, 256, 65534, 65535, 65536, 1 << 128, 10**30}
    | {sign * (1 << width) + more for width in _WIDTHS for more in (-2, -1, 0, 1, 2) for sign in (1, -1)}
)  # fmt: skip
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """Where the cases lie: a checkpoint, and its conversions into one file and into several."""

    source: Path
    outputs: tuple[Path, ...]
    files: dict[Path, bytes]
    expected: bytes


# --- one case -------------------------------------------------------------------------------------
# Each writes its forged file, and gives the entrance and what is right if it is let in.

Case = tuple[str, Path, str]


def _zip(place: Place, rng: random.Random) -> Case:
    """Say another number in a header, a descriptor or an end record."""
    members = rank_bytes.rank_file().members()
    number = rng.choice(NUMBERS)
    lies: dict[str, Any] = {}
    where = rng.randrange(4)
    if where == 0:
        member = rng.choice(members)
        side = rng.choice((member.local, member.central, member.central))
        key = rng.choice(("flags", "method", "crc", "packed", "size", "n_extra", "offset", "disk"))
        side[key] = number % (1 << (16 if key in ("flags", "method", "n_extra", "disk") else 32))
    elif where == 1:
        member = rng.choice(members)
        keys = [key for key in ("size", "packed", "offset") if rng.random() < 0.6] or ["size"]
        truth = {"size": len(member.content), "packed": len(member.content), "offset": 0}
        values = [number if rng.random() < 0.6 else truth[key] for key in keys]
        said = dict.fromkeys(keys, 0xFFFFFFFF)
        said["extra"] = zip64_extra(*(value % (1 << 64) for value in values))
        sides = ((member.central,), (member.local,), (member.local, member.central))
        for side in rng.choice(sides):
            side.update(said)
    elif where == 2:
        key = rng.choice(("disk", "directory_disk", "n_here", "n_entries", "n_bytes", "offset", "n_comment"))  # fmt: skip
        wide = key in ("n_bytes", "offset")
        lies["end"] = {key: number % (1 << (32 if wide else 16))}
    else:
        key = rng.choice(("n_here", "n_entries", "n_bytes", "offset", "locator_offset"))
        lies["end64"] = {key: number % (1 << 64)}
        if rng.random() < 0.5:
            lies["end"] = {"n_bytes": 0xFFFFFFFF, "offset": 0xFFFFFFFF}
    (place.source / rank_bytes.RANK).write_bytes(write_zip(members, **lies))
    return rng.choice(("plan weights", "convert weights")), place.source, "exact"


def _pickle(place: Place, rng: random.Random) -> Case:
    """Declare another storage, shape, stride, offset or key, or put an int anywhere."""
    rank = rank_bytes.rank_file()
    number = rng.choice(NUMBERS)
    tensor = rng.choice(rank.tensors)
    at = rng.randrange(len(tensor.shape))
    what = rng.randrange(5)
    if what == 0:
        tensor.n_elements = number
    elif what == 1:
        tensor.offset = number
    elif what in (2, 3):
        name = ("shape", "strides")[what - 2]
        sizes = list(getattr(tensor, name))
        sizes[at] = number
        setattr(tensor, name, tuple(sizes))
    elif number >= 0:
        tensor.key = str(number)
    pickled = p_pickle(p_dict(rank.items()))
    if rng.random() < 0.2:
        pickled = p_pickle(p_dict([*rank.items(), (p_str("more"), p_int(number))]))
    (place.source / rank_bytes.RANK).write_bytes(write_zip(rank.members(pickled)))
    return rng.choice(("plan weights", "convert weights")), place.source, "done"


def _params(place: Place, rng: random.Random) -> Case:
    path = place.source / rank_bytes.PARAMS
    content = json.loads(place.files[path])
    keys = (*content, "vocab_size", "n_kv_heads", "rope_theta", "ffn_dim_multiplier", "max_seq_len")
    content[rng.choice(keys)] = _json_number(rng)
    path.write_text(json.dumps(content))
    return rng.choice(("plan", "convert")), place.source, "done"


def _header(place: Place, rng: random.Random) -> Case:
    """Change a number of a safetensors header, or its length."""
    output = rng.choice(place.outputs)
    path = rng.choice(sorted(output.glob("*.safetensors")))
    raw = place.files[path]
    end = 8 + int.from_bytes(raw[:8], "little")
    if rng.random() < 0.2:
        path.write_bytes(struct.pack("<Q", rng.choice(NUMBERS) % (1 << 64)) + raw[8:])
    else:
        header = json.loads(raw[8:end])
        _change_number(header, rng)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[end:])
    seen = "found" if path.read_bytes() != raw else "unseen"  # zero in the place of zero
    return rng.choice(("verify", "verify alone")), output, seen


def _json(place: Place, rng: random.Random) -> Case:
    """Change a number of a JSON file of an output."""
    path = rng.choice([path for path in place.files if path.suffix == ".json" and path.parent in place.outputs])  # fmt: skip
    content = json.loads(place.files[path])
    before = deepcopy(content)
    _change_number(content, rng)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))
    # Nothing is compared with some numbers of a record; of the others, a float may be the same.
    seen = "found" if content != before and path.name != "conversion.json" else "unseen"
    return rng.choice(("verify", "verify alone")), path.parent, seen


def _json_number(rng: random.Random) -> Any:
    number = rng.choice(NUMBERS)
    return rng.choice((number, number, float(min(number, 10**300)), str(number), [number], 1e308))


def _change_number(content: Any, rng: random.Random) -> None:
    """Put another number in the place of one that stands anywhere inside."""
    found: list[tuple[Any, Any]] = []
    left = [content]
    while left:
        one = left.pop()
        for key in one if isinstance(one, dict) else range(len(one)):
            if isinstance(one[key], dict | list):
                left.append(one[key])
            elif type(one[key]) in (int, float):
                found.append((one, key))
    if found:
        owner, key = rng.choice(found)
        owner[key] = _json_number(rng)


CASES: tuple[Callable[[Place, random.Random], Case], ...] = (
    _zip, _zip, _zip, _pickle, _pickle, _params, _header, _json,
)  # fmt: skip


# --- the run --------------------------------------------------------------------------------------


def fuzz_numbers(
    n_cases: int, *, seed: int = 0, plant: str = "none"
) -> tuple[Counter[str], int, float]:
    """Say wild numbers in every format, and let it in by an entrance that reads it.

    Args:
        n_cases: How many.
        seed: Runs others of their kind.
        plant: A mistake that the process is given, of `fuzz_child.PLANTS`.

    Returns:
        How many ended how, the most memory and the most seconds of a case. "exact": converted to
        the byte; "done": converted, as the number says something that is possible; "refused",
        "found": told; "unseen": of a record. "wrong", "missed" and "crash" are not right.
    """
    tally: Counter[str] = Counter()
    peak, slowest = 0, 0.0
    with scratch_folder() as folder, Child(plant) as child:
        place = _make_place(folder, child)
        output = folder / "out"
        for number in range(n_cases):
            rng = random.Random(f"numbers {seed} {number}")
            make = rng.choice(CASES)
            entrance, where, right = make(place, rng)
            ended = child.run(entrance, place.source, output if where == place.source else where)
            how = _judge(ended.how, entrance, right, output / MODEL, place.expected)
            for path, content in place.files.items():
                if path.parent == where:
                    path.write_bytes(content)
            peak, slowest = max(peak, ended.peak_bytes), max(slowest, ended.seconds)
            tally[how] += 1
            if how not in RIGHT and plant == "none":
                sys.stderr.write(f"  case {number}{make.__name__}, {entrance}: {how} {ended.how}\n")
    return tally, peak, slowest


def _judge(how: str, entrance: str, right: str, model: Path, expected: bytes) -> str:
    if how == "done" and right == "exact" and entrance.startswith("convert"):
        return "exact" if model.read_bytes() == expected else "wrong"
    if how == "equal":
        return "missed" if right == "found" and entrance == "verify" else "unseen"
    return how.partition(":")[0]


def _make_place(folder: Path, child: Child) -> Place:
    """Write the good files, and see that they are let in."""
    source = folder / "in"
    tokenizer = tokenizer_model(rank_bytes.TINY.vocab)
    save_checkpoint(source, rank_bytes.TINY, rank_bytes.STATE, tokenizer=tokenizer)
    rank_bytes.put(source, rank_bytes.rank_file().members())
    one, many = folder / "one", folder / "many"
    for entrance, output in (("convert", one), ("convert into several", many)):
        good = child.run(entrance, source, output)
        assert good.how == "done", good
        assert child.run("verify alone", source, output).how == "equal"
    expected = save(
        contiguous(expected_state_dict(rank_bytes.STATE, rank_bytes.TINY)),
        metadata={"format": "pt"},
    )
    assert (one / MODEL).read_bytes() == expected
    files = {path: path.read_bytes() for place in (source, one, many) for path in place.iterdir()}
    return Place(source, (one, many), files, expected)
