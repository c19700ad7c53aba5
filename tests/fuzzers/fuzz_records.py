"""Own the fuzzing of journals: what others write into a staging folder is input.

Every mutant follows from the seed and its number. Whatever a journal says, the run ends with every
bit of the model right, or in one line that leaves nothing that loads.
"""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from codellama_convert.convert.run import convert_checkpoint, run
from codellama_convert.plan.job import plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.staging.records import fingerprint_sha256
from tests.fuzzers.fuzz_files import damage
from tests.fuzzers.fuzz_outputs import change_value, ended
from tests.fuzzers.running import scratch_folder
from tests.outputs import STAGING, content, loads, stop_after_files
from tests.witness.checkpoints import Shape, Storage, random_model, save_checkpoint

RIGHT = {"exact", "refused"}
_OPTIONS = Options(max_shard_bytes=400, workers=1, skip_tokenizer=True, io_mode="buffered")
_SHAPE = Shape(dim=8, n_layers=1, n_heads=2, n_kv_heads=2, hidden=16, vocab=20)
_STORAGES: tuple[Storage, ...] = ("own", "flat")
_RECORD = "conversion.json"  # counts of odd values stand there as the journal says them


@dataclass(frozen=True)
class Subject:
    """A checkpoint, staged work of it, and what becomes of it."""

    source: Path
    staged: Path
    expected: dict[str, bytes]


@contextmanager
def subjects() -> Iterator[list[Subject]]:
    """Stop a conversion in its middle, and one as it begins to publish, of two kinds of ranks."""
    with scratch_folder() as place:
        made = []
        for storage in _STORAGES:
            source, whole = place / storage, place / f"whole-{storage}"
            model = random_model(_SHAPE, seed=1)
            save_checkpoint(source, _SHAPE, model, 2, storage=storage, tokenizer=False)
            convert_checkpoint(source, whole, options=_OPTIONS)
            half, late = place / f"half-{storage}", place / f"late-{storage}"
            stop_after_files(plan_conversion(source, _OPTIONS), half, 3)
            with (
                mock.patch.object(OutputFolder, "publish", side_effect=KeyboardInterrupt),
                suppress(KeyboardInterrupt),
            ):
                convert_checkpoint(source, late, options=_OPTIONS)
            expected = content(whole)
            made += [Subject(source, staged, expected) for staged in (half, late)]
        yield made


def line_of(record: Any) -> bytes:
    """Spell a line of a journal by hand, its sum right."""
    text = json.dumps(record, separators=(",", ":"))
    return b'{"crc32":"%08x","record":%s}\n' % (zlib.crc32(text.encode()), text.encode())


def forge(raw: bytes, rng: random.Random) -> bytes:
    """Change a journal as a disk does, or as someone who knows what it is."""
    if rng.random() < 0.2:
        return damage(raw, rng)
    records = [json.loads(line)["record"] for line in raw.splitlines()]
    for _ in range(rng.choice((1, 1, 1, 3))):
        change_value(records, rng)
    if records and isinstance(records[0], dict) and rng.random() < 0.8:
        records[0]["fingerprint"] = fingerprint_sha256(records[0].get("identity", {}))
    return b"".join(map(line_of, records))


def outcome(subject: Subject, journal: bytes, place: Path) -> str:
    """Resume with a journal, and tell how that ended: "exact", "refused", "wrong" or "crash: ..."."""
    target = place / "out"
    shutil.copytree(subject.staged, target)
    (target / STAGING / "journal.jsonl").write_bytes(journal)
    try:
        how, _ = ended(lambda: run(plan_conversion(subject.source, _OPTIONS), target))
        if how == "refused":
            return "crash: something loads" if loads(target) else how
        if how != "done":
            return how
        found, expected = content(target), dict(subject.expected)
        assert found.keys() == expected.keys()
        del found[_RECORD], expected[_RECORD]
        return "exact" if found == expected else "wrong"
    finally:
        shutil.rmtree(target, ignore_errors=True)


def fuzz_records(n_mutants: int, *, seed: int = 0) -> Counter[str]:
    """Resume with forged and damaged journals; "exact" and "refused" are right."""
    tally: Counter[str] = Counter()
    with subjects() as all_subjects, scratch_folder() as place:
        for subject in all_subjects:
            good = (subject.staged / STAGING / "journal.jsonl").read_bytes()
            assert outcome(subject, good, place) == "exact"
        for number in range(n_mutants):
            rng = random.Random(f"records {seed} {number}")
            subject = rng.choice(all_subjects)
            good = (subject.staged / STAGING / "journal.jsonl").read_bytes()
            tally[outcome(subject, forge(good, rng), place)] += 1
    return tally


def planted_in_records(n_mutants: int = 200) -> Counter[str]:
    """Take what a journal says as it is: "crash" is right."""
    with (
        mock.patch(
            "codellama_convert.staging.records.sealed_file_in", lambda one: SealedFile(**one)
        ),
        mock.patch(
            "codellama_convert.staging.records.file_sums_in",
            lambda sums: {name: FileSum(**one) for name, one in sums.items()},
        ),
    ):
        tally = fuzz_records(n_mutants)
    return Counter(how.partition(":")[0] for how in tally.elements())
