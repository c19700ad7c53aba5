"""Own which conversion an output is compared with: the one that it says it is of.

What the user says comes first, then the output's record; without a record, the checkpoint and what
the output shows. What they contradict is found when the two are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from codellama_convert.choices import DEFAULT_MAX_SHARD_BYTES, TOKENIZER_CLASSES, TOKENIZER_ONLY
from codellama_convert.errors import VerifyError
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.meta.places import model_name
from codellama_convert.model.asked import RULES, Asked
from codellama_convert.model.recognise import recognise, wanted_flavor
from codellama_convert.plan.job import Job
from codellama_convert.plan.options import Options
from codellama_convert.plan.tokenizer import plan_tokenizer
from codellama_convert.plan.weights import plan_weights
from codellama_convert.storage.folders import names_in
from codellama_convert.tensors import as_dtype, dtype_named
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.output_files import json_file
from codellama_convert.verify.record_reader import Record, readable_record
from codellama_convert.verify.report import Problems

_DEFAULT_CLASS = "PreTrainedTokenizerFast"


def asked_of(options: Options) -> Asked:
    """Take from options what they say of the output.

    Args:
        options: As a user gave them; a value that is the default says nothing.

    Returns:
        What the output is said to be.
    """
    has_tokenizer = options.tokenizer_model is not None or options.tokenizer_class is not None
    default_size = options.max_shard_bytes == DEFAULT_MAX_SHARD_BYTES
    return Asked(
        dtype=None if options.dtype is None else as_dtype(options.dtype).name,
        max_position_embeddings=options.max_position_embeddings,
        max_shard_size=None if default_size else options.max_shard_bytes,
        rope_scaling_factor=options.rope_scaling_factor,
        skip_tokenizer=True if options.skip_tokenizer else False if has_tokenizer else None,
        tokenizer_class=options.tokenizer_class,
        variant=wanted_flavor(options.model_size, options.flavor),
    )


def options_for(output_dir: Path, options: Options, said: Asked) -> Options:
    """Complete the options with which the source is opened by what the output's record says.

    Args:
        output_dir: What was converted.
        options: What was said.
        said: What of it is about the output.

    Returns:
        Options with which no more has to be said than the record does.
    """
    record = readable_record(output_dir, Problems())  # reported when it is compared
    if record is None:
        return _with(options, said)
    names = names_in(output_dir, error=VerifyError)
    alone = not record.tensors and names.isdisjoint({INDEX_NAME, SINGLE_FILE_NAME})
    if alone and options.model_size is None:
        options = replace(options, model_size=TOKENIZER_ONLY)
    return _with(options, said.or_else(record.asked))


def _with(options: Options, asked: Asked) -> Options:
    skipped = bool(asked.skip_tokenizer)
    return replace(
        options,
        flavor=asked.variant,
        dtype=None if asked.dtype is None else dtype_named(asked.dtype),
        max_position_embeddings=asked.max_position_embeddings,
        rope_scaling_factor=asked.rope_scaling_factor,
        max_shard_bytes=asked.max_shard_size or DEFAULT_MAX_SHARD_BYTES,
        tokenizer_class=None if skipped else asked.tokenizer_class,
        skip_tokenizer=skipped,
    )


def job_as_asked(job: Job, asked: Asked) -> Job:
    """Plan what was opened once more, as it was asked for; nothing is read.

    Args:
        job: From `plan_conversion`.
        asked: What is said of the output, by the user or its record.

    Returns:
        The conversion whose output is to be expected.

    Raises:
        ConfigError: If the buffers for another dtype do not fit.
    """
    options = _with(job.options, asked)
    weights, tokenizer, recognised = job.weights, job.tokenizer, None
    if weights is not None:
        recognised = recognise(
            weights.checkpoint.config,
            folder_name=model_name(job.files.folder),
            flavor=options.flavor,
            max_position_embeddings=options.max_position_embeddings,
            rope_scaling_factor=options.rope_scaling_factor,
        )
        weights = plan_weights(replace(weights.checkpoint, recognised=recognised), options)
    if options.skip_tokenizer:
        tokenizer = None
    elif tokenizer is not None:
        names = tokenizer.special_names
        tokenizer = plan_tokenizer(tokenizer.model, options, recognised, names=names)
    return replace(job, options=options, weights=weights, tokenizer=tokenizer)


def class_named(job: Job, record: Record | None) -> str | None:
    """Find the class that tokenizer_config.json is to name.

    Args:
        job: From `job_as_asked`.
        record: The output's.

    Returns:
        Its name. None without a tokenizer, and where the record is of a conversion of the time when
        the key was left out unless it was asked for.
    """
    if job.tokenizer is None or job.options.tokenizer_class is not None:
        return job.options.tokenizer_class
    is_older = (
        record is not None
        and bool(record.tensors)
        and record.options.get("tokenizer_class", _DEFAULT_CLASS) is None
    )
    return None if is_older else _DEFAULT_CLASS


def shown_by(output_dir: Path, stored: Mapping[str, StoredOutput], job: Job) -> Asked:
    """Read from an output without a record what its source does not say.

    Args:
        output_dir: What was converted.
        stored: The tensors that it holds.
        job: The source.

    Returns:
        What stands there, where a conversion could have been asked for it.
    """
    config, tokenizer_config = (
        _content(output_dir / name) for name in ("config.json", "tokenizer_config.json")
    )
    dtypes = {one.dtype.name for one in stored.values()}
    recognised = None if job.weights is None else job.weights.checkpoint.recognised
    context = (
        tokenizer_config.get("model_max_length")
        if recognised is None
        else config.get("max_position_embeddings")
    )
    is_known = recognised is not None and recognised.context_is_known
    may_be_asked = RULES["max_position_embeddings"].holds(context)
    is_context = may_be_asked and not is_known
    factor = _scaling_factor(config)
    factor_is_known = recognised is None or recognised.scaling_is_known
    named = tokenizer_config.get("tokenizer_class")
    has_template = "chat_template" in tokenizer_config
    flavor_is_known = recognised is not None and recognised.flavor is not None
    return Asked(
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        max_position_embeddings=context if is_context else None,
        rope_scaling_factor=None if factor_is_known else factor,
        tokenizer_class=named if named in TOKENIZER_CLASSES else None,
        variant="chat" if has_template and not flavor_is_known else None,
    )


def _scaling_factor(config: Mapping[str, Any]) -> float | None:
    scaling = config.get("rope_scaling")
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    return factor if RULES["rope_scaling_factor"].holds(factor) else None


def _content(path: Path) -> dict[str, Any]:
    try:
        return json_file(path)
    except VerifyError:  # reported when it is compared
        return {}
