"""Change an output, and list what verify says of it."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from codellama_convert import Options, plan_conversion, verify_output
from codellama_convert.errors import ConvertError
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob

MODEL, INDEX, RECORD = "model.safetensors", "model.safetensors.index.json", "conversion.json"
NORM = "model.norm.weight"
SMALL_FILES = (
    "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
Damage = Callable[[Path], Any]


def told(output: Path, job: Job | ReverseJob | None = None, **how: Any) -> list[str]:
    """Verify; give the problems, or the error as the only one."""
    try:
        found = list(verify_output(output, job, **how).problems)
    except ConvertError as problem:
        found = [str(problem)]
    for line in found:
        assert line.isprintable(), line
        assert len(line) < 700 + len(str(output)), line
    return found


def problems(converted: Path, output: Path) -> tuple[str, ...]:
    """Compare with the source; what was asked for is the record's to say."""
    return tuple(told(output, plan_conversion(converted / "in", Options())))


def missed(
    output: Path, job: Job | ReverseJob, path: Path, changed: bytes, *, by_name: bool = True
) -> list[str]:
    """Change a file and list the ways in which that is not found, or not by name; put it back."""
    raw, record = path.read_bytes(), (output / RECORD).read_bytes()
    assert changed != raw
    path.write_bytes(changed)
    found = {"by the record": told(output), "by both": told(output, job)}
    if path.name != RECORD:
        (output / RECORD).unlink()
        found["by the source"] = told(output, job)
        (output / RECORD).write_bytes(record)
    path.write_bytes(raw)
    fact = path.name if by_name else ""
    return [way for way, lines in found.items() if not any(fact in line for line in lines)]


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Load a file's tensors, change them, and save them as the library does."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def changes(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Flip a bit, insert a byte and delete one: at both ends, and in between."""
    last = len(raw) - 1
    for at in sorted({0, len(raw) // 2, last}):
        yield f"byte {at} flipped", raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        yield f"byte before {at}", raw[:at] + b" " + raw[at:]
        yield f"byte {at} deleted", raw[:at] + raw[at + 1 :]
    yield "byte behind", raw + b"\n"
    yield "nothing left", b""


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file says, and nothing of how it is spelled; a record gets a right sum again."""
    content = json.loads(path.read_bytes())
    edit(content)
    if path.name == RECORD:
        content["crc32"] = "00000000"
        content["crc32"] = f"{zlib.crc32(spelled(path.name, content)):08x}"
    path.write_bytes(spelled(path.name, content))


def spelled(name: str, content: dict[str, Any]) -> bytes:
    ascii_only, is_long = name in (RECORD, INDEX), name == "tokenizer.json"
    text = json.dumps(content, indent=2, sort_keys=not is_long, ensure_ascii=ascii_only)
    return (text if is_long else f"{text}\n").encode(errors="surrogatepass")


def without_record(output: Path) -> Path:
    """Leave the output to the comparison with the source alone."""
    (output / RECORD).unlink()
    return output


def irregular(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    elif kind == "missing":
        pass
    else:
        path.symlink_to({"dangling": "nowhere", "loop": path.name, "zero": "/dev/zero"}[kind])


def rewrite_header(path: Path, edit: Callable[[bytes], bytes]) -> None:
    raw = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", raw[:8])
    header = edit(raw[8 : 8 + n_bytes])
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + n_bytes :])


def entry(**said: Any) -> Callable[[bytes], bytes]:
    """Change the entry of the last norm."""

    def edit(header: bytes) -> bytes:
        content = json.loads(header)
        content[NORM].update(said)
        return compact(content)

    return edit


def compact(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def top(edit: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def run(header: bytes) -> bytes:
        content = json.loads(header)
        edit(content)
        return compact(content)

    return run
