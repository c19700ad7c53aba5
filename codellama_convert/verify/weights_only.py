"""Own the comparison of the weights alone: any folder of Hugging Face's format with Meta's ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from codellama_convert.arguments import instance_of
from codellama_convert.errors import VerifyError
from codellama_convert.plan.job import Job
from codellama_convert.plan.weights import WeightsJob
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.folder_reader import read_weights
from codellama_convert.verify.job import asked_of, job_as_asked
from codellama_convert.verify.output_files import refuse_pickles
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading
from codellama_convert.verify.weights import (
    bytes_of_both_sides,
    common_dtype,
    compare_shapes,
    compare_weights,
)

# Older transformers saved these too; they follow from rope_theta.
_BUFFER = ".rotary_emb.inv_freq"


def verify_weights(
    folder: Path, job: Job, watch: Watch, executor: Executor | None = None
) -> VerifyReport:
    """Compare the weights of a model's folder with the ranks, bit for bit.

    How the tensors are split into files does not matter, nor does any other file.

    Args:
        folder: It holds safetensors files, with an index if there are several.
        job: The source. Without a dtype in its options, the folder's own is taken.
        watch: Whom each tile of the folder's tensors is reported to.
        executor: Whose workers compare them; None is threads of this process.

    Returns:
        What was found.

    Raises:
        ConvertError: If a side cannot be read at all.
    """
    instance_of(WeightsJob).check("job.weights", job.weights)
    problems = Problems()
    refuse_pickles(folder, names_in(folder, error=VerifyError))
    stored = read_weights(folder, problems.add)
    buffers = [name for name in stored if name.endswith(_BUFFER)]
    for name in buffers:
        del stored[name]
    asked, dtypes = asked_of(job.options), {one.dtype.name for one in stored.values()}
    if asked.dtype is None and len(dtypes) == 1:
        asked = replace(asked, dtype=dtypes.pop())
    weights = job_as_asked(job, asked).weights
    assert weights is not None
    comparable = compare_shapes(weights.checkpoint, stored, problems)
    dtype = common_dtype(comparable, weights.plan, problems)
    reading = FileReading(
        job.options.io_mode, weights.plan.workers, watch, executor, job.options.max_ram_bytes
    )
    compare_weights(weights, comparable, problems, reading)
    n_bytes = bytes_of_both_sides(weights, comparable)
    notes = tuple(_notes(weights.checkpoint.dtype_names, dtype, buffers))
    return VerifyReport(folder, "ranks", len(comparable), n_bytes, problems.lines(), notes)


def _notes(source: str, found: str, buffers: Sequence[str]) -> Iterator[str]:
    yield "compared the weights alone: no configuration, tokenizer, conversion.json or other file"
    if source != found:
        yield f"the ranks are {source}, the folder is {found}: compared with the cast of each number"
    if buffers:
        yield f"not compared: {len(buffers)} x rotary_emb.inv_freq, which follow from rope_theta"
