"""Own the proof of an output: bit for bit against its source, or against its own record.

It shares with the conversion only the readers and the table: the output's header is parsed here
and by the safetensors library, rows are walked backwards from the output to the ranks, and a cast
is torch's own. Print nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from codellama_convert.arguments import FLAG, FUNCTION, as_path, instance_of, or_none
from codellama_convert.formats.safetensors import INDEX_NAME
from codellama_convert.formats.tiktoken import TiktokenModel
from codellama_convert.meta.checkpoint import Checkpoint
from codellama_convert.model.asked import Asked, AskedRanks
from codellama_convert.plan.job import Job
from codellama_convert.plan.options import IO_MODE, WORKERS
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.tokenizer import TokenizerJob
from codellama_convert.storage.blocks import DEFAULT_IO_MODE, IoMode
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Progress, Watch
from codellama_convert.verify.against_record import Measured, check_record, verify_record
from codellama_convert.verify.config import (
    check_config,
    check_generation_config,
    marks_of_llama_3,
    marks_without_tokenizer,
)
from codellama_convert.verify.folder_reader import StoredOutput, read_output
from codellama_convert.verify.job import asked_of, class_named, job_as_asked, shown_by
from codellama_convert.verify.output_files import (
    CONFIG_NAMES,
    TOKENIZER_NAMES,
    complain_of_strays,
)
from codellama_convert.verify.ranks.folder import holds_ranks
from codellama_convert.verify.ranks.record import verify_ranks_record
from codellama_convert.verify.ranks.run import verify_ranks
from codellama_convert.verify.record_reader import readable_record
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading
from codellama_convert.verify.tokenizer.files import check_tokenizer, marks_of
from codellama_convert.verify.tokenizer.llama3 import check_llama3_tokenizer
from codellama_convert.verify.weights import (
    bytes_of_both_sides,
    common_dtype,
    compare_files,
    compare_shapes,
    compare_weights,
)
from codellama_convert.verify.weights_only import verify_weights

_CHAT_FLAVORS = ("instruct", "chat")


def verify_output(
    output_dir: str | os.PathLike[str],
    job: Job | ReverseJob | None = None,
    *,
    asked: Asked | AskedRanks | None = None,
    io_mode: IoMode = DEFAULT_IO_MODE,
    workers: int | None = None,
    progress: Progress | None = None,
    weights_only: bool = False,
    executor: Executor | None = None,
) -> VerifyReport:
    """Verify an output folder.

    Args:
        output_dir: What was converted.
        job: The source, from `plan_conversion`, or from `plan_reverse` for a folder of ranks; None
            compares with the output's own record.
        asked: What the conversion was asked for, where that is known; by default what the job's
            options say. The rest is what the record says, or what the output shows.
        io_mode: How files are read without a job, whose options say it else.
        workers: What is read at once without a job; None chooses.
        progress: Called with the bytes of each tile of the output that was compared.
        weights_only: Whether to compare nothing but the weights: of any folder in Hugging Face's
            format, whoever wrote it. It needs a job, from `plan_conversion`.
        executor: Whose workers compare the tensors with those of the job; they need the same folders
            under the same paths. None compares on threads of this process, as without a job.

    Returns:
        What was found.

    Raises:
        ConvertError: If a side cannot be read at all.
        ConfigError: With the argument's name, its value, and what is allowed.
    """
    output_dir = as_path("output_dir", output_dir)
    or_none(instance_of(Job, ReverseJob)).check("job", job)
    IO_MODE.check("io_mode", io_mode)
    WORKERS.check("workers", workers)
    or_none(FUNCTION).check("progress", progress)
    FLAG.check("weights_only", weights_only)
    or_none(instance_of(Executor)).check("executor", executor)
    is_of_ranks = isinstance(job, ReverseJob) or (job is None and holds_ranks(output_dir))
    or_none(instance_of(AskedRanks if is_of_ranks else Asked)).check("asked", asked)
    watch = Watch(progress)
    if weights_only:
        instance_of(Job).check("job", job)
        assert isinstance(job, Job)
        return verify_weights(output_dir, job, watch, executor)
    if isinstance(job, ReverseJob):
        assert not isinstance(asked, Asked)
        return verify_ranks(output_dir, job, asked, watch, executor)
    if job is not None:
        assert not isinstance(asked, AskedRanks)
        return _verify_source(output_dir, job, asked, watch, executor)
    reading = FileReading(io_mode, workers or default_workers(), watch)
    if is_of_ranks:
        said = asked if isinstance(asked, AskedRanks) else AskedRanks()
        return verify_ranks_record(output_dir, said, reading)
    said_of_model = asked if isinstance(asked, Asked) else Asked()
    return verify_record(output_dir, said_of_model, reading)


def _verify_source(
    output_dir: Path, job: Job, asked: Asked | None, watch: Watch, executor: Executor | None
) -> VerifyReport:
    problems = Problems()
    record = readable_record(output_dir, problems)
    stored = {} if job.weights is None else read_output(output_dir, problems.add)
    told = shown_by(output_dir, stored, job) if record is None else record.asked
    asked = (asked_of(job.options) if asked is None else asked).or_else(told)
    job = job_as_asked(job, asked)
    comparable: dict[str, StoredOutput] = {}
    measured = Measured()
    if job.weights is not None:
        comparable = compare_shapes(job.weights.checkpoint, stored, problems)
        dtype = common_dtype(comparable, job.weights.plan, problems)
        _check_configs(output_dir, job.weights.checkpoint, job.tokenizer, dtype, problems)
        if asked.max_shard_size is not None:
            compare_files(job.weights.plan, comparable, problems)
        reading = FileReading(
            job.options.io_mode,
            job.weights.plan.workers,
            watch,
            executor,
            job.options.max_ram_bytes,
        )
        measured = compare_weights(job.weights, comparable, problems, reading)
    if job.tokenizer is not None:
        _check_tokenizer(output_dir, job.tokenizer, class_named(job, record), problems)
    complain_of_strays(output_dir, _names_written(job, stored), problems.add)
    if record is not None and (stored or not record.tensors):
        check_record(
            output_dir, record, job=job, stored=stored, measured=measured, problems=problems
        )
    n_bytes = bytes_of_both_sides(job.weights, comparable)
    return VerifyReport(output_dir, "source", len(comparable), n_bytes, problems.lines())


def _names_written(job: Job, stored: Mapping[str, StoredOutput]) -> set[str]:
    """Name what a conversion leaves in the folder; shards are called as they are."""
    names = {one.file.name for one in stored.values()}
    if len(names) > 1:
        names.add(INDEX_NAME)
    if job.weights is not None:
        names.update(CONFIG_NAMES)
    if job.tokenizer is not None:
        names.update(TOKENIZER_NAMES)
    return names


def _check_configs(
    output_dir: Path,
    checkpoint: Checkpoint,
    tokenizer: TokenizerJob | None,
    dtype: str,
    problems: Problems,
) -> None:
    recognised, factor = checkpoint.recognised, checkpoint.recognised.rope_scaling_factor
    scaled = factor is not None
    if tokenizer is None:
        n_rows = checkpoint.config.vocab_size
        marks = marks_without_tokenizer(n_rows, recognised.flavor, scaled=scaled)
    elif isinstance(tokenizer.model, TiktokenModel):
        n_tokens = len(tokenizer.model.tokens)
        marks = marks_of_llama_3(n_tokens, recognised.flavor, scaled=scaled)
    else:
        marks = marks_of(tokenizer.model)
    check_config(
        output_dir,
        checkpoint.config,
        dtype=dtype,
        context=recognised.max_position_embeddings,
        factor=factor,
        marks=marks,
        problems=problems,
    )
    chat = recognised.flavor in _CHAT_FLAVORS
    check_generation_config(output_dir, marks=marks, chat=chat, problems=problems)


def _check_tokenizer(
    output_dir: Path, tokenizer: TokenizerJob, tokenizer_class: str | None, problems: Problems
) -> None:
    context, chat = tokenizer.context, tokenizer.flavor in _CHAT_FLAVORS
    if isinstance(tokenizer.model, TiktokenModel):
        check_llama3_tokenizer(
            output_dir,
            tokenizer.model,
            context=context,
            chat=chat,
            names=tokenizer.special_names,
            problems=problems,
        )
        return
    check_tokenizer(
        output_dir,
        tokenizer.model,
        context=context,
        chat=chat,
        tokenizer_class=tokenizer_class,
        problems=problems,
    )
