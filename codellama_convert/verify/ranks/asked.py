"""Own what is said of ranks, by a user and by their record, and what of it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from codellama_convert.errors import ConfigError
from codellama_convert.model.asked import AskedRanks
from codellama_convert.model.config import ModelConfig
from codellama_convert.plan.ranks.job import ReverseJob, refuse_uneven_split
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.tensors import as_dtype, dtype_named
from codellama_convert.verify.record_reader import readable_record
from codellama_convert.verify.report import Problems


def asked_of_ranks(options: ReverseOptions) -> AskedRanks:
    """Take from options what they say of the output.

    Args:
        options: As a user gave them; a value that is the default says nothing.

    Returns:
        What the output is said to be.
    """
    has_tokenizer = options.tokenizer_model is not None
    return AskedRanks(
        checklist=True if options.checklist else None,
        dtype=None if options.dtype is None else as_dtype(options.dtype).name,
        ranks=options.n_ranks,
        rope_freqs=None if options.rope_freqs else False,
        skip_tokenizer=True if options.skip_tokenizer else False if has_tokenizer else None,
        torch_layout=options.torch_layout,
        vocab_rows=options.vocab_rows,
    )


def reverse_options_for(
    output_dir: Path, options: ReverseOptions, said: AskedRanks
) -> ReverseOptions:
    """Complete the options with which the source is opened by what the output's record says.

    Args:
        output_dir: What was converted.
        options: What was said.
        said: What of it is about the output.

    Returns:
        Options with which no more has to be said than the record does.
    """
    record = readable_record(output_dir, Problems())  # reported when it is compared
    recorded = (None if record is None else record.asked_ranks) or AskedRanks()
    n_rows, said = said.vocab_rows, said.or_else(recorded)
    return replace(
        options,
        n_ranks=recorded.ranks or said.ranks,
        dtype=None if said.dtype is None else dtype_named(said.dtype),
        torch_layout=said.torch_layout or options.torch_layout,
        rope_freqs=said.rope_freqs is not False,
        # What does not fit is a difference, and no reason not to open the source.
        vocab_rows=recorded.vocab_rows or n_rows,
        skip_tokenizer=bool(said.skip_tokenizer) and options.tokenizer_model is None,
        checklist=bool(said.checklist),
    )


def without_impossible(asked: AskedRanks, job: ReverseJob, problems: Problems) -> AskedRanks:
    """Report what no ranks of a source can be, and take it out of what is said of them.

    Args:
        asked: What is said of the output, by the user or its record.
        job: The source, from `plan_reverse`.
        problems: Gets what cannot be.

    Returns:
        What can be.
    """
    source = job.weights.source.config
    n_rows = asked.vocab_rows or job.weights.config.vocab_size
    what = _impossible(source, n_rows, asked.ranks or len(job.weight_files))
    if what is None:
        return asked
    problems.add(f"no such ranks can be written from the source: {what}")
    return replace(asked, ranks=None, vocab_rows=None)


def _impossible(config: ModelConfig, n_rows: int, n_ranks: int) -> str | None:
    if n_rows > config.vocab_size:
        return f"{n_rows} rows are more than its {config.vocab_size}"
    try:
        refuse_uneven_split(replace(config, vocab_size=n_rows), n_ranks)
    except ConfigError as problem:
        return problem.message
    return None
