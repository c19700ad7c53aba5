"""Own conversion.json: what an output was made of, so that it can be checked without its source.

It is the same from run to run: no times, no names of machines, no absolute paths, nothing of
workers or buffers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from codellama_convert import __version__
from codellama_convert.hugging_face.config_json import json_bytes
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.find_original import find_original
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.original import original_json
from codellama_convert.staging.record_values import FileSum, SealedFile


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
