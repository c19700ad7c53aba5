"""Own conversion.json: what an output was made of, so that it can be checked without its source.

It is the same from run to run: no times, no names of machines, no absolute paths, nothing of
workers or buffers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from codellama_convert import __version__
from codellama_convert.hugging_face.config_json import json_bytes
from codellama_convert.hugging_face.model_card import CARD_NAME
from codellama_convert.meta.checklist import CHECKLIST_NAME, checklist_bytes
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.find_original import find_original
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.original import MAX_REST_BYTES, original_json
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.storage.contents import Content

# Of that; 70B has 723 tensors and 160 kB, or 210 kB where ranks were saved in an unusual way.
_RECORD_BYTES, _RECORD_BYTES_PER_ENTRY = 1 << 14, 1 << 9


def record_json(
    job: Job | ReverseJob,
    sealed: Mapping[str, SealedFile],
    small_files: Mapping[str, FileSum],
    source_crcs: Sequence[int],
    *,
    notes: Sequence[str],
    sha256s: Mapping[str, str] | None,
) -> bytes:
    """Build conversion.json.

    Args:
        job: What was done.
        sealed: The safetensors files, by name.
        small_files: What the other files are, by name.
        source_crcs: CRC-32 of each file that was read, in order.
        notes: What the user should know, wherever the input was found.
        sha256s: SHA-256 of each of those files by name; None leaves it out.

    Returns:
        The file's bytes.
    """
    written: dict[str, SealedFile | FileSum] = {**sealed, **small_files}
    files: dict[str, dict[str, Any]] = {
        name: {"size": one.n_bytes, "crc32": f"{one.crc32:08x}"} for name, one in written.items()
    }
    if sha256s is not None:
        for name, entry in files.items():
            entry["sha256"] = sha256s[name]
    return _with_own_sum(
        {
            "converter": {"name": "codellama-convert", "version": __version__},
            "files": files,
            "model": job.model_name,
            "notes": list(notes),
            "options": job.fingerprint()["options"],
            "source": _source(job, source_crcs),
            "tensors": _tensors(job, sealed),
            **_original(job),
        }
    )


def _with_own_sum(content: dict[str, Any]) -> bytes:
    """Add the CRC-32 of the whole file, taken with zeros in its own place.

    A file that says what the others are must show by itself that nobody changed it since.
    """
    crc = zlib.crc32(json_bytes({"crc32": "0" * 8, **content}))
    return json_bytes({"crc32": f"{crc:08x}", **content})


def _source(job: Job | ReverseJob, source_crcs: Sequence[int]) -> dict[str, Any]:
    files = () if job.weights is None else job.weights.source_files
    return {
        file.path.name: {"size": file.n_bytes, "crc32": f"{crc:08x}"}
        for file, crc in zip(files, source_crcs, strict=True)
    }


def _original(job: Job | ReverseJob) -> dict[str, Any]:
    """Say how the ranks are saved that were read or written, where they can come back as they were."""
    if isinstance(job, ReverseJob):
        original = job.original
    elif job.weights is None:
        original = None
    else:
        original = find_original(job.weights.checkpoint, job.weights.plan.dtype)
    return {} if original is None else {"original": original_json(original)}


def _tensors(job: Job | ReverseJob, sealed: Mapping[str, SealedFile]) -> dict[str, Any]:
    if isinstance(job, ReverseJob):
        return _tensors_of_ranks(job, sealed)
    return {
        tensor.spec.name: {
            "file": file.name,
            "dtype": tensor.spec.dtype.code,
            "shape": list(tensor.spec.shape),
            "size": tensor.spec.n_bytes,
            "crc32": f"{sealed[file.name].tensors[tensor.spec.name]:08x}",
            **_value_counts([sealed[file.name]], tensor.spec.name),
        }
        for file in job.weight_files
        for tensor in file.tensors
    }


def _tensors_of_ranks(job: ReverseJob, sealed: Mapping[str, SealedFile]) -> dict[str, Any]:
    """Describe tensors of which each rank has a part, or a copy."""
    ranks = [sealed[file.name] for file in job.weight_files]
    return {
        tensor.spec.name: {
            "dtype": tensor.spec.dtype.code,
            "shape": list(tensor.spec.shape),
            "crc32": [f"{rank.tensors[tensor.spec.name]:08x}" for rank in ranks],
            **_value_counts(ranks, tensor.spec.name),
        }
        for tensor in job.weights.plan.tensors
    }


def _value_counts(files: Sequence[SealedFile], name: str) -> dict[str, int]:
    """List a tensor's counts of odd values in all files that get some of it, where there are any."""
    counts = {
        "became_zero": sum(file.became_zero.get(name, 0) for file in files),
        "nonfinite": sum(file.nonfinite.get(name, 0) for file in files),
    }
    return {kind: n for kind, n in counts.items() if n}


def file_sizes(
    job: Job | ReverseJob, small_files: Mapping[str, Content], *, with_card: bool = False
) -> dict[str, int]:
    """Report the size of each file that a conversion may write.

    Args:
        job: What is done.
        small_files: What it writes beside the weights, from `Job.small_files`.
        with_card: Whether the model card is wanted; otherwise it takes nothing.

    Returns:
        Bytes by name; the record's are estimated, to the safe side.
    """
    card = job.model_card() if with_card else None
    sizes = {name: len(content) for name, content in small_files.items()}
    sizes |= {RECORD_NAME: _RECORD_BYTES + _rest_digits(job), CARD_NAME: len(card or b"")}
    if isinstance(job, ReverseJob) and job.options.checklist:
        listed = [*small_files, *(file.name for file in job.weight_files)]
        sizes[CHECKLIST_NAME] = checklist_bytes(listed)
    for file in job.weight_files:
        sizes[file.name] = file.n_bytes
        sizes[RECORD_NAME] += _RECORD_BYTES_PER_ENTRY * (len(file.tensors) + 1)
    return sizes


def _rest_digits(job: Job | ReverseJob) -> int:
    """Count the digits that say what the ranks hold beside the weights, at most."""
    if isinstance(job, ReverseJob) or job.weights is None:
        return 2 * MAX_REST_BYTES if isinstance(job, ReverseJob) and job.original else 0
    weights = sum(
        prod(tensor.meta.part_shape) * tensor.spec.dtype.itemsize
        for tensor in job.weights.checkpoint.layout
    )
    stored = [sum(one.n_bytes for one in rank.storages.values()) for rank in job.ranks]
    return 2 * min(sum(max(n_bytes - weights, 0) for n_bytes in stored), MAX_REST_BYTES)
