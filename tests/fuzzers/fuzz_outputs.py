"""Own the fuzzing of what lies around the weights: damaged outputs, and the small files of inputs.

Every mutant follows from the seed and its number. A damaged output must be found by `verify`, with
the source and without; a damaged small input must be refused or converted. Nothing may end in
anything but a report or a `ConvertError`.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.errors import ConvertError
from codellama_convert.plan.job import Job
from tests.faults.hostile import rank_bytes
from tests.fuzzers.fuzz_files import damage
from tests.fuzzers.running import CASE_SECONDS, time_limit
from tests.witness.checkpoints import save_checkpoint, tokenizer_model

RIGHT = {"found", "refused", "converted"}
_RECORD = "conversion.json"
_OPTIONS = {"max_position_embeddings": 64, "io_mode": "buffered", "workers": 1}
_INTERESTING = (
    None, True, False, 0, 1, -1, 2, 1.0, 1e308, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**30, "", "x", "\ud800\x1b[2J\n",
    "../x", "/dev/zero", "config.json", "x" * 5000, [], [1], {}, {"a": 1}, [[[[[]]]]],
)  # fmt: skip


def fuzz_outputs(n_mutants: int, *, seed: int = 0, compare_values: bool = True) -> Counter[str]:
    """Damage outputs and small inputs, and tell how `verify` and `convert` ended.

    Args:
        n_mutants: How many.
        seed: Runs others of their kind.
        compare_values: False switches the comparison of JSON files off, which must be seen.

    Returns:
        How many ended how. "found", "refused": told. "converted": the small input says something
        else that is possible. "missed" and "crash: ..." are wrong: every byte of an output counts.
    """
    tally: Counter[str] = Counter()
    with _subject() as subject, _comparing(on=compare_values):
        for number in range(n_mutants):
            rng = random.Random(f"outputs {seed} {number}")
            path = rng.choice(subject.outputs if rng.random() < 0.8 else subject.inputs)
            good = path.read_bytes()
            mutant = _mutate(path, good, rng)
            if mutant == good:
                continue
            path.write_bytes(mutant)
            inside = path in subject.inputs
            found = _of_input(subject) if inside else _of_output(subject, path)
            path.write_bytes(good)
            tally[found] += 1
    return tally


@dataclass(frozen=True)
class _Subject:
    """A good checkpoint and its conversions, one into one file and one into several."""

    place: Path
    job: Job
    inputs: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)


@contextmanager
def _subject() -> Iterator[_Subject]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        place = Path(name)
        checkpoint = place / "in"
        tokenizer = tokenizer_model(rank_bytes.TINY.vocab)
        save_checkpoint(checkpoint, rank_bytes.TINY, rank_bytes.STATE, tokenizer=tokenizer)
        (checkpoint / "checklist.chk").write_text(f"{'0' * 32}  params.json\n")
        convert_checkpoint(checkpoint, place / "one", options=Options(**_OPTIONS))
        several = Options(**_OPTIONS, max_shard_bytes=5000)
        convert_checkpoint(checkpoint, place / "many", options=several)
        job = plan_conversion(checkpoint, Options(**_OPTIONS))
        subject = _Subject(place, job)
        subject.inputs.extend(checkpoint / name for name in ("params.json", "tokenizer.model"))
        subject.inputs.append(checkpoint / "checklist.chk")
        subject.outputs.extend(sorted((place / "one").iterdir()))
        subject.outputs.extend(sorted((place / "many").iterdir()))
        for output in (place / "one", place / "many"):
            assert verify_output(output).problems == verify_output(output, job).problems == ()
        yield subject


@contextmanager
def _comparing(*, on: bool) -> Iterator[None]:
    if on:
        yield
        return
    inside = "codellama_convert.verify.report"
    with (
        mock.patch(f"{inside}.identical", return_value=True),
        mock.patch(f"{inside}.first_other_byte", return_value=None),
    ):
        yield


# --- mutants --------------------------------------------------------------------------------------


def _mutate(path: Path, raw: bytes, rng: random.Random) -> bytes:
    """Change bytes anywhere, or a value of a JSON file or of a header."""
    if rng.random() < 0.4:
        return damage(raw, rng)
    if path.suffix == ".json":
        return _change_json(raw, rng)
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(raw[:8], "little")
        header = _change_json(raw[8:end], rng)
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + raw[end:]
    return damage(raw, rng)


def _change_json(raw: bytes, rng: random.Random) -> bytes:
    content = json.loads(raw)
    for _ in range(rng.choice((1, 1, 1, 3))):
        change_value(content, rng)
    separators = (",", ":") if raw[:2] == b'{"' else None
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5, separators=separators)
    if rng.random() < 0.1:  # a key once more, in front
        text = text.replace("{", f"{{{json.dumps(rng.choice(list(content) or ['a']))}: 1, ", 1)
    return text.encode(errors="surrogatepass")


def change_value(content: Any, rng: random.Random) -> None:
    """Walk down some way, and delete, add, replace, rename or swap there."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(content[key], dict | list) or not content[key] or rng.random() < 0.2:
            break
        content = content[key]
    kind = rng.randrange(5)
    if kind == 0:
        del content[key]
    elif kind == 1 and isinstance(content, dict):
        content[rng.choice(("x", "", "\ud800", "__metadata__", *keys))] = deepcopy(
            rng.choice(_INTERESTING)
        )
    elif kind == 2:
        other = rng.choice(keys)
        content[key], content[other] = content[other], content[key]
    elif kind == 3:
        content[key] = _near(content[key], rng)
    else:
        content[key] = deepcopy(rng.choice(_INTERESTING))


def _near(value: Any, rng: random.Random) -> Any:
    """Give a value that is easily taken for another one."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return rng.choice((value + 1, float(value), str(value), -value, [value]))
    if isinstance(value, float):
        return rng.choice((str(value), value * 2, value + 1e-9))
    if isinstance(value, str):
        return rng.choice((value + " ", value[:-1], value.upper(), [value]))
    return [value]


# --- how they end ---------------------------------------------------------------------------------


def ended(run: Callable[[], Any]) -> tuple[str, Any]:
    """Run; tell whether it was "refused" or "done", or how it crashed."""
    try:
        with time_limit(CASE_SECONDS):
            return "done", run()
    except ConvertError as problem:
        text = str(problem)
        if not text.isprintable() or len(text) > 1000:
            return f"crash: a message of {len(text)} characters", None
        return "refused", None
    except Exception as problem:  # noqa: BLE001 - any other is what is looked for
        return f"crash: {type(problem).__name__}: {problem}"[:200], None


def _of_input(subject: _Subject) -> str:
    output = subject.place / "out"
    how, _ = ended(
        lambda: convert_checkpoint(subject.place / "in", output, options=Options(**_OPTIONS))
    )
    if how == "refused" and output.exists():
        how = "crash: something was left"
    shutil.rmtree(output, ignore_errors=True)
    return "converted" if how == "done" else how


def _of_output(subject: _Subject, path: Path) -> str:
    """Verify without the source, and with it; but for the record, without the record beside it."""
    results = [_verified(path.parent, None)]
    record = path.parent / _RECORD
    kept = record.read_bytes()
    if path != record:
        record.unlink()
    results.append(_verified(path.parent, subject.job))
    record.write_bytes(kept)
    crashes = [result for result in results if result.startswith("crash")]
    if crashes:
        return crashes[0]
    return "found" if set(results) == {"found"} else "missed"


def _verified(output: Path, job: Job | None) -> str:
    how, report = ended(lambda: verify_output(output, job))
    if how == "refused":
        return "found"
    if how != "done":
        return how
    if any(not line.isprintable() or len(line) > 1000 for line in report.problems):
        return "crash: a problem of more than one line"
    return "found" if report.problems else "equal"
