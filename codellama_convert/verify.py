"""Own the proof of an output: bit for bit against its source, or against its own record.

It shares with the conversion only the readers and the table: the output's header is parsed here
and by the safetensors library, rows are walked backwards from the output to the ranks, and a cast
is torch's own. Print nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from codellama_convert.arguments import as_path, instance_of, or_none
from codellama_convert.checkpoint import Checkpoint
from codellama_convert.conversion_record import FileSums, Record, read_record
from codellama_convert.errors import VerifyError, shown
from codellama_convert.files import aligned_buffer
from codellama_convert.input_file import InputFile
from codellama_convert.job import Job
from codellama_convert.output_reader import StoredOutput, read_output
from codellama_convert.plan import TensorPlan
from codellama_convert.rank_reader import RankReader
from codellama_convert.tensors import as_dtype
from codellama_convert.verify_config import Asked, check_config, check_generation_config
from codellama_convert.verify_record import check_record, verify_record
from codellama_convert.verify_report import Problems, Progress, VerifyReport
from codellama_convert.verify_tensor import TensorComparer
from codellama_convert.verify_tokenizer import check_tokenizer, marks_of
from codellama_convert.workers import share_out

_CHAT_FLAVORS = ("instruct", "chat")


def verify_output(
    output_dir: str | os.PathLike[str], job: Job | None = None, *, progress: Progress | None = None
) -> VerifyReport:
    """Verify an output folder.

    Args:
        output_dir: What was converted.
        job: The source, from `plan_conversion`; None compares with the output's own record.
        progress: Called with the bytes of each tile of the output that was compared.

    Returns:
        What was found.

    Raises:
        ConvertError: If a side cannot be read at all.
    """
    output_dir = as_path("output_dir", output_dir)
    or_none(instance_of(Job)).check("job", job)
    if job is None:
        return verify_record(output_dir, progress=progress)
    problems = Problems()
    record = _readable_record(output_dir, problems)
    asked = _asked(job, record)
    found: dict[str, StoredOutput] = {}
    comparable: dict[str, StoredOutput] = {}
    sources: dict[str, FileSums] = {}
    if job.checkpoint is not None:
        found = read_output(output_dir, problems.add)
        comparable = _compare_shapes(job.checkpoint, found, problems)
        asked = _check_configs(job, output_dir, comparable, asked, problems)
        sources = _compare_weights(job, comparable, problems, progress or (lambda _: None))
    if job.tokenizer is not None:
        check_tokenizer(output_dir, job.tokenizer, asked=asked, problems=problems)
    if record is not None and (found or not record.tensors):
        check_record(output_dir, record, stored=found, source=sources, problems=problems)
    n_bytes = _bytes_of_both_sides(job, comparable)
    return VerifyReport(output_dir, "source", len(comparable), n_bytes, problems.lines())


def _readable_record(output_dir: Path, problems: Problems) -> Record | None:
    try:
        return read_record(output_dir)
    except VerifyError as problem:
        problems.add(str(problem))
        return None


def _asked(job: Job, record: Record | None) -> Asked:
    """Tell what the conversion was asked for: what the checkpoint or an option says goes first."""
    said = {} if record is None else record.options
    options = job.options
    identity = None if job.checkpoint is None else job.checkpoint.identity
    context = said.get("max_position_embeddings")
    if options.max_position_embeddings is not None:
        context = options.max_position_embeddings
    elif identity is not None and identity.context_is_known:
        context = identity.max_position_embeddings
    flavor = options.flavor if identity is None else identity.flavor
    chat = None if record is None else said.get("variant") in _CHAT_FLAVORS
    tokenizer_class = options.tokenizer_class or said.get("tokenizer_class")
    dtype = said.get("dtype") if options.dtype is None else as_dtype(options.dtype).name
    return Asked(
        context=context if type(context) is int and context > 0 else None,
        chat=chat if flavor is None else flavor in _CHAT_FLAVORS,
        tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
        class_is_known=record is not None or options.tokenizer_class is not None,
        dtype=dtype if isinstance(dtype, str) else None,
    )


def _compare_shapes(
    checkpoint: Checkpoint, found: Mapping[str, StoredOutput], problems: Problems
) -> dict[str, StoredOutput]:
    """Compare names and shapes; give the tensors whose values can be compared."""
    wanted = {tensor.spec.name: tensor.spec for tensor in checkpoint.layout}
    for name in sorted(set(wanted) - set(found)):
        problems.add(f"tensor {name!r} is missing")
    for name in sorted(set(found) - set(wanted)):
        problems.add(f"{found[name].file.name}: tensor {shown(name)} is none of this model")
    comparable = {}
    for name in sorted(set(found) & set(wanted)):
        if found[name].shape != wanted[name].shape:
            problems.add(
                f"{found[name].file.name}: tensor {name!r} has shape {found[name].shape}, "
                f"expected {wanted[name].shape}"
            )
        else:
            comparable[name] = found[name]
    return comparable


def _common_dtype(
    stored: Mapping[str, StoredOutput], asked: Asked, problems: Problems
) -> str | None:
    """Give the name of the one dtype that all tensors have."""
    dtypes = sorted({one.dtype.name for one in stored.values()})
    if len(dtypes) > 1:
        problems.add(f"the tensors are of several dtypes: {', '.join(dtypes)}")
        return asked.dtype
    dtype = dtypes[0] if dtypes else asked.dtype
    if asked.dtype not in (None, dtype):
        problems.add(f"the tensors are {dtype}, not {asked.dtype} as asked for")
    return dtype


def _check_configs(
    job: Job,
    output_dir: Path,
    stored: Mapping[str, StoredOutput],
    asked: Asked,
    problems: Problems,
) -> Asked:
    """Check both configurations; give what was asked for with the context that they say."""
    assert job.checkpoint is not None
    dtype = _common_dtype(stored, asked, problems)
    config, marks = job.checkpoint.config, marks_of(job.tokenizer)
    context = check_config(
        output_dir, config, dtype=dtype, marks=marks, asked=asked, problems=problems
    )
    asked = replace(asked, context=context)
    check_generation_config(output_dir, marks=marks, asked=asked, problems=problems)
    return asked


def _bytes_of_both_sides(job: Job, stored: Mapping[str, StoredOutput]) -> int:
    itemsize = 0 if job.checkpoint is None else job.checkpoint.dtype.itemsize
    return sum(
        one.n_bytes + one.n_bytes // one.dtype.itemsize * itemsize for one in stored.values()
    )


def _compare_weights(
    job: Job, stored: Mapping[str, StoredOutput], problems: Problems, advance: Progress
) -> dict[str, FileSums]:
    """Walk every tensor backwards to the ranks; give the size and CRC-32 of each rank's file."""
    assert job.checkpoint is not None
    assert job.plan is not None
    plans = [tensor for tensor in job.plan.tensors if tensor.spec.name in stored]
    io_mode = job.options.io_mode
    differences: dict[str, str] = {}
    # A rank's norms are copies that the structure's check compared; each is read here as well.
    with ExitStack() as stack:
        names = [tensor.layout.meta_name for tensor in plans]
        readers = [
            stack.enter_context(RankReader(rank, names, io_mode=io_mode))
            for rank in job.checkpoint.ranks
        ]
        files = {
            path: stack.enter_context(InputFile(path, io_mode=io_mode, error=VerifyError))
            for path in sorted({one.file for one in stored.values()})
        }

        def compare(
            tensor: TensorPlan, pair: tuple[memoryview, memoryview], failed: Callable[[], bool]
        ) -> None:
            del failed  # a tensor is soon read
            one = stored[tensor.spec.name]
            comparer = TensorComparer(tensor, one, files[one.file], readers)
            difference = comparer.first_difference(*pair, advance)
            if difference is not None:
                differences[tensor.spec.name] = difference

        output_tile_bytes = _output_tile_bytes(plans, stored)
        buffers = [
            (aligned_buffer(job.plan.read_tile_bytes), aligned_buffer(output_tile_bytes))
            for _ in range(job.plan.workers)
        ]
        share_out(plans, buffers, compare)
        for tensor in plans:  # in order, whichever thread was first
            if tensor.spec.name in differences:
                problems.add(differences[tensor.spec.name])
        return {reader.index.path.name: _sums(reader, buffers[0][0]) for reader in readers}


def _sums(reader: RankReader, buffer: memoryview) -> FileSums:
    reader.finish(buffer)
    return FileSums(reader.index.n_bytes, f"{reader.file_crc(buffer):08x}")


def _output_tile_bytes(plans: Sequence[TensorPlan], stored: Mapping[str, StoredOutput]) -> int:
    return max(
        (p.tile_rows * p.n_columns * stored[p.spec.name].dtype.itemsize for p in plans), default=1
    )
