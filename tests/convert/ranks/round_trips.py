"""There and back, and how the ranks were saved by others."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch

from codellama_convert import (
    Options,
    convert_checkpoint,
    plan_conversion,
    reverse_checkpoint,
    verify_output,
)
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.outputs import content

RECORD = "conversion.json"
EQUAL = "every rank has the size and the CRC-32 of the file that was converted"
LAID_OUT = f"the ranks get the layout that is recorded in {RECORD}"


def there(source: Path, place: Path, **options: object) -> Path:
    """Convert into a Hugging Face folder, and look that verify finds nothing wrong with it."""
    convert_checkpoint(source, place / "hf", options=Options(**options))
    job = plan_conversion(source, Options(**options))
    assert verify_output(place / "hf", job).problems == ()
    assert verify_output(place / "hf").problems == ()
    return place / "hf"


def back(folder: Path, place: Path, **options: object) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Write the ranks of a folder, and return what is written and what is said."""
    report = reverse_checkpoint(folder, place / "ranks", options=ReverseOptions(**options))
    files = content(place / "ranks")
    del files[RECORD]
    return files, report.notes


def assert_comes_back(source: Path, place: Path, **options: object) -> None:
    skip = {"skip_tokenizer": True} if options.get("skip_tokenizer") else {}
    files, notes = back(there(source, place, **options), place, **skip)
    assert files == content(source)
    assert notes[-2:] == (LAID_OUT, EQUAL)
    assert (
        verify_output(place / "ranks", plan_reverse(place / "hf", ReverseOptions(**skip))).problems
        == ()
    )
    assert verify_output(place / "ranks").problems == ()


def resave(source: Path, change) -> Path:
    """Save each rank again, changed; from the same name, so with the same root."""
    for path in sorted(source.glob("*.pth")):
        torch.save(change(torch.load(path, weights_only=True)), path)
    return source


def forge(folder: Path, change) -> None:
    """Change how the ranks were saved, and sum the record up again."""
    path = folder / RECORD
    record = json.loads(path.read_text())
    change(record["original"])
    record["crc32"] = "0" * 8
    raw = (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
    record["crc32"] = f"{zlib.crc32(raw):08x}"
    path.write_bytes((json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def swap(items: list) -> None:
    items[0], items[1] = items[1], items[0]
