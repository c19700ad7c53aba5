"""Own the fuzzers: damaged files, forged pickles, random layouts; and run those of outputs.

A quick share of each runs in tests/fuzzers/test_fuzz.py. The full sweep, twenty minutes on one core:

    python -m tests.fuzzers.fuzz --full

It is part of `python -m tests.faults.sweep`, which runs all families. It runs 20,000 damaged files, the
same with the CRC-32 check switched off (which must find silently wrong weights, or the first run
proved nothing), 20,000 forged pickles whose CRC-32 is right, 20,000 forged journals of staged work
(tests/fuzzers/fuzz_records.py), 1,000 random layouts that are interrupted and resumed, and, through every
public entrance of a process of its own, 20,000 forged tokenizers and 20,000 wild numbers
(tests/fuzzers/fuzz_tokenizers.py, tests/fuzzers/fuzz_numbers.py); it prints how many ended how, and exits with 1 if
any ended wrong. Of all but the files some more are run by a program with a planted mistake, which
must be found.
`--files N`, `--pickles N`, `--layouts N`, `--records N`, `--outputs N`, `--tokenizers N` and
`--numbers N` run some of it; `--seed N` runs others of its kind.
Every mutant follows from its family, the seed and its number, which are printed where one fails.
"""

from __future__ import annotations

import argparse
import io
import json
import pickletools
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from codellama_convert.convert.run import convert_checkpoint, run
from codellama_convert.errors import CheckpointError, ConvertError
from codellama_convert.formats.pickle_reader import _Machine
from codellama_convert.formats.pth_reader import read_rank
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.plan.job import Options, plan_conversion
from tests.faults.hostile import rank_bytes, zip_bytes
from tests.faults.resumes import replace_ranks, spoiled_records, stop_and_damage
from tests.outputs import content, flip_bit, loads
from tests.witness.checkpoints import (
    STORAGES,
    Shape,
    State,
    expected_state_dict,
    random_model,
    read_output,
    same_bits,
    save_checkpoint,
    sums_computed,
)

N_FULL = {
    "files": 20_000, "pickles": 20_000, "layouts": 1_000, "outputs": 20_000, "records": 20_000,
    "tokenizers": 20_000, "numbers": 20_000,
}  # fmt: skip
MODEL_FILE = "model.safetensors"
CASE_SECONDS = 20
MAX_GROWTH_BYTES = 64 << 20
_METADATA = {"format": "pt"}
_QUICK = Options(skip_tokenizer=True, io_mode="buffered", workers=1)
_TWO = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=16, vocab=300)


# --- running one ----------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Break a hang with an exception that the package does not handle; on Windows, pytest breaks it."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(folder: Path, out: Path, expected: bytes | None) -> str:
    """Convert, and tell how it ended.

    Args:
        folder: The checkpoint.
        out: The new folder; removed again.
        expected: The model file, to the byte; None where any is right.

    Returns:
        "exact", "converted", "refused", "wrong" or "crash: ...".
    """
    try:
        with time_limit(CASE_SECONDS):
            convert_checkpoint(folder, out, options=_QUICK)
    except ConvertError as problem:
        text = str(problem)
        if "\n" in text or len(text) > 1000:
            return f"crash: a message of {len(text)} characters"
        return "crash: something was left" if out.exists() else "refused"
    except Exception as problem:  # noqa: BLE001 - any other is what is looked for
        shutil.rmtree(out, ignore_errors=True)
        return f"crash: {type(problem).__name__}: {problem}"[:200]
    found = (out / MODEL_FILE).read_bytes()
    shutil.rmtree(out)
    if expected is None:
        return "converted"
    return "exact" if found == expected else "wrong"


@dataclass(frozen=True)
class Subject:
    """A tiny good checkpoint, and the model file that it must give."""

    name: str
    folder: Path
    expected: bytes

    @property
    def ranks(self) -> list[Path]:
        return sorted(self.folder.glob("*.pth"))


def subjects(scratch: Path) -> list[Subject]:
    """Write the checkpoints that are damaged: torch's layouts, and those of other writers."""
    made = []

    def add(name: str, shape: Shape, state: State, write: Callable[[Path], Any]) -> None:
        folder = scratch / name
        write(folder)
        expected = save(contiguous(expected_state_dict(state, shape)), metadata=_METADATA)
        made.append(Subject(name, folder, expected))

    for name, shape, how in (
        ("own", rank_bytes.TINY, {}),
        ("two-ranks", _TWO, {"n_ranks": 2}),
        ("flat", rank_bytes.TINY, {"storage": "flat"}),
        ("shared", _TWO, {"storage": "shared-offset", "n_ranks": 2}),
        ("transposed", rank_bytes.TINY, {"storage": "transposed", "pickle_protocol": 4}),
        ("strided", rank_bytes.TINY, {"storage": "strided", "rope": "inner"}),
    ):
        state = random_model(shape, seed=11, special_values=True)

        def write(folder: Path, shape: Shape = shape, state: State = state, how: Any = how) -> None:
            save_checkpoint(folder, shape, state, tokenizer=False, **how)

        add(name, shape, state, write)

    def rezipped(folder: Path) -> None:
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        rank_bytes.put(folder, rank_bytes.rank_file().members())

    def streamed(folder: Path) -> None:
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        members = rank_bytes.rank_file().members()
        rank_bytes.put(
            folder, [zip_bytes.stream_member(m.name, m.content) for m in members], end64={}
        )

    add("rezipped", rank_bytes.TINY, rank_bytes.STATE, rezipped)
    add("streamed", rank_bytes.TINY, rank_bytes.STATE, streamed)
    return made


def contiguous(state: State) -> State:
    """Copy what a view shares, which the library refuses to save."""
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


# --- damaged files --------------------------------------------------------------------------------


def _range(rng: random.Random, raw: bytes, longest: int = 4096) -> tuple[int, int]:
    start = rng.randrange(len(raw))
    return start, min(len(raw), start + 1 + int(longest ** rng.random()))


def damage(raw: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, networks and hands do."""
    mutant = bytearray(raw)
    start, end = _range(rng, raw)
    other, _ = _range(rng, raw)
    kind = rng.randrange(11)
    if kind <= 2:
        for _ in range((1, 1, 6)[kind]):
            mutant[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        mutant[start:end] = bytes(end - start)
    elif kind == 4:
        mutant[start:end] = b"\xff" * (end - start)
    elif kind == 5:
        mutant[start:end] = rng.randbytes(end - start)
    elif kind == 6:
        del mutant[start:]
    elif kind == 7:
        mutant[start:end], piece = mutant[other : other + end - start], mutant[start:end]
        mutant[other : other + len(piece)] = piece
    elif kind == 8:
        mutant[start:start] = mutant[start:end]
    elif kind == 9:
        del mutant[start:end]
    else:  # the end records and the directory, where a byte matters most
        at = len(raw) - 1 - int(min(2000, len(raw) - 1) ** rng.random())
        mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(mutant)


def fuzz_files(n_mutants: int, *, seed: int = 0, check_crc: bool = True) -> Counter[str]:
    """Convert damaged checkpoints; "exact" and "refused" are right, anything else is not."""
    tally: Counter[str] = Counter()
    with scratch_folder() as scratch:
        all_subjects = subjects(scratch)
        for subject in all_subjects:
            found = outcome(subject.folder, scratch / "out", subject.expected)
            assert found == "exact", (subject.name, found)
        with mock.patch.object(RankReader, "_check", RankReader._check if check_crc else _no_check):
            for number in range(n_mutants):
                rng = random.Random(f"files {seed} {number}")
                subject = rng.choice(all_subjects)
                path = rng.choice(subject.ranks)
                good = path.read_bytes()
                path.write_bytes(damage(good, rng))
                _count(tally, outcome(subject.folder, scratch / "out", subject.expected), number)
                path.write_bytes(good)
    return tally


def _no_check(*_: object) -> None:
    """Stand in for the comparison of CRC-32s."""


# --- forged pickles -------------------------------------------------------------------------------

_ANY_OPCODE = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_SPLICES = [
    rank_bytes.p_call(
        rank_bytes.p_global("os", "system"), rank_bytes.p_str("touch /nowhere/canary")
    ),
    rank_bytes.p_storage("FloatStorage", "0", 1 << 40),
    rank_bytes.p_str("x" * 70_000),
    rank_bytes.p_int(-1),
    rank_bytes.p_int(1 << 62),
    rank_bytes.P_ORDERED_DICT,
    rank_bytes.P_NONE,
    b"(" * 50,
    b")" + b"\x85" * 3000,
    b"]" * 3000 + b"q\x00",
    b"}" + b"h\x00" * 9 + b"u",
    b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"r\xff\xff\xff\xffj\xff\xff\xff\xff",
    b"\x8d" + struct.pack("<Q", 1 << 40),
]


def forge(pickled: bytes, rng: random.Random) -> bytes:
    """Change a pickle as someone does who knows what it is."""
    if rng.random() < 0.3:
        mutant = bytearray(pickled)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        return bytes(mutant)
    starts = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    steps = [pickled[a:b] for a, b in zip(starts, [*starts[1:], len(pickled)], strict=True)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(steps) > 3:
            _change_steps(steps, rng)
    return b"".join(steps)


def _change_steps(steps: list[bytes], rng: random.Random) -> None:
    """Delete, repeat, swap, put in or replace an opcode, or a run of them."""
    at, other = rng.randrange(1, len(steps)), rng.randrange(1, len(steps))
    run = slice(at, at + rng.randrange(60))
    kind = rng.randrange(9)
    if kind == 0:
        del steps[at]
    elif kind == 1:
        steps.insert(at, steps[other])
    elif kind == 2:
        steps[at], steps[other] = steps[other], steps[at]
    elif kind == 3:
        steps.insert(at, rng.choice(_SPLICES))
    elif kind == 4:
        steps.insert(at, rng.choice(_ANY_OPCODE) + rng.randbytes(rng.choice((0, 1, 4, 8))))
    elif kind == 5:
        steps[at] = rng.choice(_ANY_OPCODE) + steps[at][1:]
    elif kind == 6:
        steps[at:at] = steps[run] * rng.choice((1, 2, 40))
    elif kind == 7:
        del steps[run]
    else:
        steps[at] = _other_number(steps[at], rng)


def _other_number(step: bytes, rng: random.Random) -> bytes:
    if step[:1] not in b"KMJ":
        return rng.choice(_SPLICES)
    interesting = (0, 1, 2, 7, 8, 9, 63, 64, 65, -1, -8, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 63)
    return rank_bytes.p_int(rng.choice(interesting))


def fuzz_pickles(n_mutants: int, *, seed: int = 0) -> Counter[str]:
    """Convert forged pickles, every CRC-32 right; "refused" and "converted" are right."""
    tally: Counter[str] = Counter()
    with scratch_folder() as scratch:
        folder = scratch / "checkpoint"
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        rank = rank_bytes.rank_file()
        pickles = [rank.pickled(), *(_torch_pickle(protocol) for protocol in (2, 4))]
        for pickled in pickles:
            rank_bytes.put(folder, rank.members(pickled))
            found = outcome(folder, scratch / "out", None)
            assert found == "converted", found
        for number in range(n_mutants):
            rng = random.Random(f"pickles {seed} {number}")
            rank_bytes.put(folder, rank.members(forge(rng.choice(pickles), rng)))
            _count(tally, outcome(folder, scratch / "out", None), number)
    return tally


def _torch_pickle(protocol: int) -> bytes:
    """Let torch pickle the same tensors; its records are named as ours are."""
    import zipfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / rank_bytes.RANK
        torch.save(rank_bytes.STATE, path, pickle_protocol=protocol)
        with zipfile.ZipFile(path) as archive:
            return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


# --- random layouts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A model, how it is stored, how it is to be converted, and when that is interrupted."""

    shape: Shape
    n_ranks: int
    dtype: torch.dtype
    seed: int
    how: dict[str, Any]
    with_crc: bool
    options: Options
    stops: list[int]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Draw a model of one to eight ranks."""
    n_ranks = draw(st.integers(1, 8))
    n_kv_heads = n_ranks * draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 4))
    shape = Shape(
        dim=n_heads * head_dim,
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden=n_ranks * draw(st.integers(1, 9)),
        vocab=n_ranks * draw(st.integers(1, 40)),
    )
    tile_bytes = draw(st.one_of(st.integers(1, 4096), st.integers(1, 1 << 20)))
    max_shard_bytes = draw(st.one_of(st.integers(1, 1 << 14), st.integers(1, 1 << 24)))
    return Layout(
        shape,
        n_ranks,
        draw(st.sampled_from((torch.bfloat16, torch.float16, torch.float32))),
        draw(st.integers(0, 1 << 30)),
        {
            "storage": draw(st.sampled_from(STORAGES)),
            "rope": draw(st.sampled_from(("top", "inner", None))),
            "pickle_protocol": draw(st.integers(2, 5)),
        },
        draw(st.booleans()),
        Options(
            skip_tokenizer=True,
            tile_bytes=tile_bytes,
            max_shard_bytes=max_shard_bytes,
            workers=draw(st.integers(1, 3)),
            io_mode=draw(st.sampled_from(("auto", "buffered"))),
        ),
        draw(st.lists(st.integers(0, 60), min_size=1, max_size=3)),
    )


def check_layout(layout: Layout) -> None:
    """Convert, and compare every bit with the oracle's, and every file with the library's."""
    state = random_model(layout.shape, layout.dtype, layout.seed, special_values=True)
    expected = expected_state_dict(state, layout.shape)
    with scratch_folder() as scratch:
        folder, out = scratch / "in", scratch / "out"
        _save(folder, layout, state)
        convert_checkpoint(folder, out, options=layout.options)
        found = read_output(out)
        assert sorted(found) == sorted(expected)
        for name, tensor in expected.items():
            assert same_bits(found[name], tensor), name
        index = out / f"{MODEL_FILE}.index.json"
        weight_map = (
            json.loads(index.read_text())["weight_map"]
            if index.exists()
            else dict.fromkeys(expected, MODEL_FILE)
        )
        for file in set(weight_map.values()):
            part = {name: expected[name] for name, place in weight_map.items() if place == file}
            assert (out / file).read_bytes() == save(contiguous(part), metadata=_METADATA), file
        check_resumes(layout, scratch, content(out))


def _save(folder: Path, layout: Layout, state: State) -> None:
    with sums_computed(by_torch=layout.with_crc):
        save_checkpoint(folder, layout.shape, state, layout.n_ranks, tokenizer=False, **layout.how)


def check_resumes(layout: Layout, scratch: Path, expected: dict[str, bytes]) -> None:
    """Stop it again and again, damage what is staged, then the source too, and let it finish.

    Args:
        layout: What to convert.
        scratch: Holds the checkpoint.
        expected: What an uninterrupted run makes of it.
    """
    folder, rng = scratch / "in", random.Random(layout.seed)
    for is_changed in (False, True):
        out = scratch / f"resumed {is_changed}"
        kept = stop_and_damage(plan_conversion(folder, layout.options), out, layout.stops, rng)
        if kept is None:
            assert content(out) == expected
        elif not is_changed:
            run(plan_conversion(folder, layout.options), out)
            assert content(out) == expected
            assert list(kept.problems()) == []
        elif layout.with_crc:
            _check_a_lost_bit(layout, folder, out, expected, rng)
        else:
            _check_another_model(layout, scratch, out)


def _check_a_lost_bit(
    layout: Layout, folder: Path, out: Path, expected: dict[str, bytes], rng: random.Random
) -> None:
    """Kept files were made of what the bit was; from what it is now, nothing may go out."""
    rank = rng.choice(sorted(folder.glob("*.pth")))
    storage = rng.choice(list(read_rank(rank).storages.values()))
    flip_bit(rank, storage.offset + rng.randrange(storage.n_bytes))
    try:
        run(plan_conversion(folder, layout.options), out)
    except CheckpointError:
        assert not loads(out)
    else:
        assert content(out) == expected


def _check_another_model(layout: Layout, scratch: Path, out: Path) -> None:
    """Without sums nothing but the bytes tells another model of the same size and time."""
    state = random_model(layout.shape, layout.dtype, layout.seed + 1, special_values=True)
    _save(scratch / "other", layout, state)
    convert_checkpoint(scratch / "other", scratch / "other out", options=layout.options)
    replace_ranks(scratch / "in", scratch / "other")
    run(plan_conversion(scratch / "in", layout.options), out)
    assert content(out) == content(scratch / "other out")


def fuzz_layouts(n_examples: int, *, shrink: bool = True) -> None:
    """Check random layouts; of one that fails a smaller one is looked for, if wanted."""
    run = given(layouts())(check_layout)
    quiet = settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
    quiet(run)()


def planted_in_pickles(n_mutants: int = 150) -> Counter[str]:
    """Convert forged pickles with a check of the pickle machine left out: "crash" is right."""
    with (
        mock.patch.object(_Machine, "_pop", lambda machine: machine._stack.pop()),
        redirect_stderr(io.StringIO()),
    ):
        tally = fuzz_pickles(n_mutants)
    return Counter(how.partition(":")[0] for how in tally.elements())


def rows_not_reordered() -> AbstractContextManager[object]:
    """Plant a mistake: rotary rows are left as Meta has them."""
    return mock.patch(
        "codellama_convert.convert.transfer.to_half_split", lambda rows, head_dim: rows
    )


def kept_files_not_compared() -> AbstractContextManager[object]:
    """Plant a mistake: any record fits, and a rank without sums is still what it was."""
    return mock.patch.object(RankReader, "confirms", return_value=True)


PLANTED_IN_LAYOUTS = {
    "rows not reordered": rows_not_reordered,
    "records of all that was read so far": spoiled_records,
    "kept files not compared with the source": kept_files_not_compared,
}


def planted_in_layouts(
    plant: Callable[[], AbstractContextManager[object]], n_examples: int = 40
) -> Counter[str]:
    """Check random layouts with a mistake in the program: "wrong" is right."""
    with plant():
        try:
            fuzz_layouts(n_examples, shrink=False)
        except AssertionError:
            return Counter(wrong=1)
    return Counter(exact=n_examples)


# --- the sweep ------------------------------------------------------------------------------------


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in memory where there is one: an fsync costs nothing there."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="codellama-convert-fuzz-") as name:
        yield Path(name)


def _count(tally: Counter[str], found: str, number: int) -> None:
    tally[found] += 1
    if found.startswith("crash") or (found == "wrong" and RankReader._check is not _no_check):
        sys.stderr.write(f"  mutant {number}: {found}\n")


def memory_status(key: str) -> int:
    """Read a line of /proc/self/status in bytes: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10


def measured_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run, and tell by how much the peak memory was above that at the beginning."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = memory_status("VmRSS")
    result = run()
    return result, memory_status("VmHWM") - before


def _sweep_outputs(n_mutants: int, seed: int, report: Callable[..., None]) -> None:
    from tests.fuzzers.fuzz_outputs import RIGHT, fuzz_outputs  # it takes its mutants from here

    began = time.monotonic()
    tally = fuzz_outputs(n_mutants, seed=seed)
    report("damaged outputs", tally, began, passed=set(tally) <= RIGHT)
    began = time.monotonic()
    tally = fuzz_outputs(min(n_mutants, 2_000), seed=seed, compare_values=False)
    report("the same, values not compared", tally, began, passed=tally["missed"] > 0)


def _sweep_records(n_mutants: int, seed: int, report: Callable[..., None]) -> None:
    from tests.fuzzers.fuzz_records import RIGHT, fuzz_records, planted_in_records  # as above

    began = time.monotonic()
    fuzz_records(20)  # to warm up
    tally, growth = measured_growth(lambda: fuzz_records(n_mutants, seed=seed))
    passed = set(tally) <= RIGHT and growth <= MAX_GROWTH_BYTES
    report(f"forged journals, peak +{growth / 1e6:.1f} MB", tally, began, passed=passed)
    began = time.monotonic()
    found = planted_in_records()
    report("the same, believed", found, began, passed=found["crash"] > 0)


def _sweep_entrances(
    n_tokenizers: int, n_numbers: int, seed: int, report: Callable[..., None]
) -> None:
    from tests.fuzzers import (
        fuzz_numbers,
        fuzz_tokenizers,  # they take their mutants from here
    )

    for what, n_cases, fuzz, right in (
        ("tokenizers", n_tokenizers, fuzz_tokenizers.fuzz_tokenizers, fuzz_tokenizers.RIGHT),
        ("numbers", n_numbers, fuzz_numbers.fuzz_numbers, fuzz_numbers.RIGHT),
    ):
        if not n_cases:
            continue
        began = time.monotonic()
        tally, peak, seconds = fuzz(n_cases, seed=seed)
        cost = f"a case at most {peak / 1e6:.0f} MB and {seconds:.1f} s"
        report(f"{what}, {cost}", tally, began, passed=set(tally) <= right)
        began = time.monotonic()
        planted, _, _ = fuzz(min(n_cases, 300), seed=seed, plant=what)
        report("the same, a check left out", planted, began, passed=planted["crash"] > 0)


def main() -> int:
    """Run what the command line asks for; 0 if all of it ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzers.fuzz", description=__doc__)
    parser.add_argument("--full", action="store_true")
    for name in N_FULL:
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts = N_FULL if asked.full else {name: getattr(asked, name) for name in N_FULL}
    n_files, n_pickles, n_layouts, n_outputs, n_records, *n_others = counts.values()
    right = True

    def report(what: str, tally: Counter[str], began: float, *, passed: bool) -> None:
        nonlocal right
        right = right and passed
        ended = ", ".join(f"{count} {how}" for how, count in tally.most_common())
        verdict = "pass" if passed else "FAIL"
        sys.stdout.write(f"{verdict}  {what}: {ended} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()

    if n_files:
        began = time.monotonic()
        tally = fuzz_files(n_files, seed=asked.seed)
        report("damaged files", tally, began, passed=set(tally) <= {"exact", "refused"})
        began = time.monotonic()
        tally = fuzz_files(n_files, seed=asked.seed, check_crc=False)
        report("the same, CRC-32 check off", tally, began, passed=tally["wrong"] > 0)
    if n_pickles:
        began = time.monotonic()
        fuzz_pickles(0)  # the good ones, to warm up
        tally, growth = measured_growth(lambda: fuzz_pickles(n_pickles, seed=asked.seed))
        passed = set(tally) <= {"converted", "refused"} and growth <= MAX_GROWTH_BYTES
        report(f"forged pickles, peak +{growth / 1e6:.1f} MB", tally, began, passed=passed)
        began = time.monotonic()
        found = planted_in_pickles()
        report("the same, a check left out", found, began, passed=found["crash"] > 0)
    if n_layouts:
        began = time.monotonic()
        fuzz_layouts(n_layouts)
        report("random layouts", Counter(exact=n_layouts), began, passed=True)
        for name, plant in PLANTED_IN_LAYOUTS.items():
            began = time.monotonic()
            found = planted_in_layouts(plant)
            report(f"the same, {name}", found, began, passed=found["wrong"] > 0)
    if n_outputs:
        _sweep_outputs(n_outputs, asked.seed, report)
    if n_records:
        _sweep_records(n_records, asked.seed, report)
    if any(n_others):
        _sweep_entrances(*n_others, asked.seed, report)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
