"""Own the process in which one case after another enters the package, so that an abort counts too.

The parent sends a line of JSON for each case and gets one back: how it ended, the peak memory and
the processor time. The process imports the package and no torch: its memory is that of a user's.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

from codellama_convert import (
    CodeLlamaTokenizer,
    Options,
    convert_checkpoint,
    plan_conversion,
    verify_output,
)
from codellama_convert.errors import ConvertError
from codellama_convert.plan.sizes import file_sizes

ROOT = Path(__file__).parents[2]
MAX_PEAK_BYTES = 96 << 20
MAX_SECONDS = 10
_HANGS_AFTER_SECONDS = 120  # of a busy machine
_MAX_LINE = 1000
_STATUS = Path("/proc/self/status")
_TEXT = "def f(x):\n    return '\u00e9\U0001f600 \u4e2d' + <FILL_ME>"
_WEIGHTS = Options(skip_tokenizer=True, max_position_embeddings=64, io_mode="buffered", workers=1)
_BOTH = Options(max_position_embeddings=64, io_mode="buffered", workers=1)
_TOKENIZER = Options(model_size="tokenizer_only")


# --- the child ------------------------------------------------------------------------------------


def _encode(source: Path, _output: Path) -> str:
    tokenizer = CodeLlamaTokenizer.from_pretrained(source)
    for text in (_TEXT.replace("<FILL_ME>", "x"), _TEXT):
        ids = tokenizer.encode(text)
        if not all(0 <= number < tokenizer.vocab_size for number in ids):
            return "wrong"
        tokenizer.decode(ids)
    return "done"


def _convert(options: Options) -> Callable[[Path, Path], str]:
    """Convert, and verify what was written."""

    def run(source: Path, output: Path) -> str:
        shutil.rmtree(output, ignore_errors=True)
        try:
            convert_checkpoint(source, output, options=options)
        except ConvertError:
            if output.exists():
                return "crash: something was left"
            raise
        report = verify_output(output, plan_conversion(source, options))
        return f"wrong: {report.problems[0]}" if report.problems else "done"

    return run


def _plan(options: Options) -> Callable[[Path, Path], str]:
    def run(source: Path, _output: Path) -> str:
        job = plan_conversion(source, options)
        assert sum(file_sizes(job, job.small_files()).values()) > 0
        return "done"

    return run


def _verify(options: Options | None) -> Callable[[Path, Path], str]:
    def run(source: Path, output: Path) -> str:
        job = None if options is None else plan_conversion(source, options)
        problems = verify_output(output, job).problems
        if any(not line.isprintable() or len(line) > _MAX_LINE for line in problems):
            return "crash: a problem of more than one line"
        return "found" if problems else "equal"

    return run


ENTRANCES: dict[str, Callable[[Path, Path], str]] = {
    "plan": _plan(_BOTH),
    "convert": _convert(_BOTH),
    "convert into several": _convert(replace(_BOTH, max_shard_bytes=5000)),
    "plan weights": _plan(_WEIGHTS),
    "convert weights": _convert(_WEIGHTS),
    "tokenizer_only": _convert(_TOKENIZER),
    "verify": _verify(_BOTH),
    "verify tokenizer": _verify(_TOKENIZER),
    "verify alone": _verify(None),
    "CodeLlamaTokenizer": _encode,
}


def _ended(case: dict[str, str]) -> str:
    try:
        return ENTRANCES[case["entrance"]](Path(case["source"]), Path(case["output"]))
    except ConvertError as problem:
        text = str(problem)
        if not text.isprintable() or len(text) > _MAX_LINE:
            return f"crash: a message of {len(text)} characters"
        return "refused"
    except BaseException as problem:  # noqa: BLE001 - any other is what is looked for
        return f"crash: {type(problem).__name__}: {problem}"[:200]


def _peak_bytes() -> int:
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else ["VmHWM: 0 kB"]
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


def _forget_peak() -> None:
    if _STATUS.exists():
        _STATUS.with_name("clear_refs").write_text("5")  # the peak is what is resident now


PLANTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "none": (),
    # NULs in pieces are let through, and what sentencepiece raises of them too.
    "tokenizers": (
        ("codellama_convert.formats.sentencepiece._piece_problems", lambda pieces: iter(())),
        (
            "codellama_convert.tokenizer.codec.MetaCodec._sentencepiece_errors",
            lambda codec: nullcontext(),
        ),
    ),
    # Numbers that lead out of a file are let through.
    "numbers": (
        ("codellama_convert.storage.input_file.InputFile._refuse_beyond_end", lambda *_: None),
        ("codellama_convert.formats.pth.checked.refuse_wrong_view", lambda *_: None),
    ),
}


def serve(plant: str) -> None:
    """Run the cases that come in, one a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that the package prints may be taken for an answer
    for target, replacement in PLANTS[plant]:
        mock.patch(target, replacement).start()
    for line in sys.stdin:
        _forget_peak()
        began = time.process_time()
        ended = _ended(json.loads(line))
        seconds = time.process_time() - began
        answers.write(json.dumps([ended, _peak_bytes(), seconds]) + "\n")
        answers.flush()


# --- the parent -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        how: "done", "refused", "found", "equal"; "wrong: ..." and "crash: ..." never are right.
        peak_bytes: The most memory that the process had.
        seconds: Of the processor.
    """

    how: str
    peak_bytes: int
    seconds: float


class Child:
    """A process that runs cases; one that dies is followed by another."""

    def __init__(self, plant: str = "none") -> None:
        self._plant = plant
        self._process: subprocess.Popen[str] | None = None

    def run(self, entrance: str, source: Path, output: Path) -> Ended:
        """Let a folder or file in by an entrance, and tell how it ended."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        case = {"entrance": entrance, "source": str(source), "output": str(output)}
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answer = process.stdout.readline() if selector.select(_HANGS_AFTER_SECONDS) else None
        if not answer:
            process.kill()
            status = process.wait()
            self._close()
            how = "it hangs" if answer is None else f"the process ended with {status}"
            return Ended(f"crash: {how}", 0, 0.0)
        how, peak, seconds = json.loads(answer)
        if peak > MAX_PEAK_BYTES:
            how = f"crash: {peak / 1e6:.0f} MB of memory ({how})"
        elif seconds > MAX_SECONDS:
            how = f"crash: {seconds:.1f} s ({how})"
        return Ended(how, peak, seconds)

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzzers.fuzz_child", self._plant],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._process

    def _close(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def __enter__(self) -> Child:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        self._close()  # the child ends where its input does
        if process is not None:
            process.wait(timeout=60)


if __name__ == "__main__":
    serve(sys.argv[1])
