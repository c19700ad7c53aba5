"""Own what --json prints: what will be done, was done and was found, as plain values."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from codellama_convert.cli.machine import peak_rss_bytes
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32

if TYPE_CHECKING:
    from codellama_convert.convert.report import ConversionReport
    from codellama_convert.plan.job import Job
    from codellama_convert.plan.ranks.job import ReverseJob
    from codellama_convert.plan.target import TargetFile
    from codellama_convert.plan.tiles import TensorPlan
    from codellama_convert.plan.weights import WeightsJob
    from codellama_convert.staging.output_state import OutputState
    from codellama_convert.verify.report import VerifyReport


def describe_job(job: Job, output: OutputState, *, is_finished: bool = False) -> dict[str, Any]:
    """Describe what a job will write, for machines.

    Args:
        job: The job.
        output: What stands where it goes.
        is_finished: Whether that is the result of the same conversion, so that nothing is to do.

    Returns:
        Plain values; sizes in bytes.
    """
    described: dict[str, Any] = {"input_dir": str(job.files.folder), "notes": list(job.notes)}
    if job.weights is not None:
        described |= _describe_model(job.weights)
    return described | _describe_output(output, is_finished=is_finished)


def describe_ranks(
    job: ReverseJob, output: OutputState, *, is_finished: bool = False
) -> dict[str, Any]:
    """Describe which ranks a job will write, for machines.

    Args:
        job: The job.
        output: What stands where it goes.
        is_finished: Whether that is the result of the same conversion, so that nothing is to do.

    Returns:
        Plain values; sizes in bytes.
    """
    weights, plan = job.weights, job.weights.plan
    return {
        "input_dir": str(job.input_dir),
        "notes": list(job.notes),
        "variant": job.model_name,
        "parameters": plan.n_parameters,
        "source_dtype": weights.source.dtype_names,
        "dtype": plan.dtype.name,
        "rope_theta": weights.config.rope_theta,
        "vocab_size": weights.config.vocab_size,
        "ranks": len(plan.files),
        "torch_layout": job.torch_layout,
        "dropped": list(job.dropped),
        "largest_tile_bytes": max(plan.read_tile_bytes, plan.write_tile_bytes),
        "workers": plan.workers,
        "buffer_bytes": plan.buffer_bytes,
        "total_size": plan.tensor_bytes,
        "source_bytes": sum(file.n_bytes for file in weights.source_files),
        "jobs": len(plan.passes),
        "read_bytes": plan.read_in_all,
        "files": [_describe_file(file) for file in plan.files],
        **_describe_output(output, is_finished=is_finished),
    }


def _describe_output(output: OutputState, *, is_finished: bool) -> dict[str, Any]:
    return {
        "output_dir": str(output.path),
        "output_finished": is_finished,
        "output_refusal": None if is_finished else output.refusal,
        "output_replaced": [] if is_finished else list(output.replaced),
        "staged_bytes": output.space.staged,
        "disk_needed_bytes": 0 if is_finished else output.space.needed,
        "disk_free_bytes": output.space.free,
        "disk_missing_bytes": 0 if is_finished else output.space.missing,
    }


def _describe_file(file: TargetFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "bytes": file.n_bytes,
        "tensors": [_describe_tensor(tensor) for tensor in file.tensors],
    }


def _describe_model(weights: WeightsJob) -> dict[str, Any]:
    checkpoint, plan = weights.checkpoint, weights.plan
    return {
        "variant": checkpoint.recognised.name,
        "flavor": checkpoint.recognised.flavor,
        "ranks": len(checkpoint.ranks),
        "parameters": plan.n_parameters,
        "source_dtype": checkpoint.dtype_names,
        "dtype": plan.dtype.name,
        "max_position_embeddings": checkpoint.recognised.max_position_embeddings,
        "rope_theta": checkpoint.config.rope_theta,
        "rope_scaling_factor": checkpoint.recognised.rope_scaling_factor,
        "vocab_size": checkpoint.config.vocab_size,
        "dropped": list(checkpoint.dropped),
        "largest_tile_bytes": max(plan.read_tile_bytes, plan.write_tile_bytes),
        "workers": plan.workers,
        "buffer_bytes": plan.buffer_bytes,
        "total_size": plan.tensor_bytes,
        "run_memory": {
            dtype.name: {
                "weight_bytes": plan.n_parameters * dtype.itemsize,
                "kv_cache_bytes_per_1000_tokens": checkpoint.config.kv_cache_bytes(
                    1000, dtype.itemsize
                ),
            }
            for dtype in (BFLOAT16, FLOAT16, FLOAT32)
        },
        "files": [_describe_file(file) for file in plan.files],
    }


def _describe_tensor(tensor: TensorPlan) -> dict[str, Any]:
    return {
        "name": tensor.spec.name,
        "source": tensor.source.name,
        "dtype": tensor.spec.dtype.code,
        "shape": list(tensor.target.part_shape),
        "offset": tensor.offset,
        "bytes": tensor.part_bytes,
        "tile_rows": tensor.tile_rows,
    }


def describe_report(report: ConversionReport, seconds: float) -> dict[str, Any]:
    """Describe what a conversion did, for machines.

    Args:
        report: What it did.
        seconds: How long it took.

    Returns:
        Plain values; sizes in bytes.
    """
    return {
        "output_dir": str(report.output_dir),
        "already_converted": report.already_converted,
        "files": list(report.files),
        "tensor_bytes": report.tensor_bytes,
        "kept_bytes": report.kept_bytes,
        "seconds": round(seconds, 3),
        "bytes_per_second": (
            round((report.tensor_bytes - report.kept_bytes) / seconds) if seconds else None
        ),
        "peak_rss_bytes": peak_rss_bytes(),
        "direct_io": report.direct,
        "dropped": list(report.dropped),
        "cast": report.cast,
        "became_zero": report.became_zero,
        "nonfinite": report.nonfinite,
        "notes": list(report.notes),
        "load": load_line(str(report.output_dir), has_model=report.tensor_bytes > 0),
    }


def describe_verification(
    report: VerifyReport, seconds: float, notes: Sequence[str]
) -> dict[str, Any]:
    """Describe what a verification found, for machines.

    Args:
        report: What it found.
        seconds: How long it took.
        notes: What the user should know of the source.

    Returns:
        Plain values; sizes in bytes.
    """
    return {
        **asdict(report),
        "output_dir": str(report.output_dir),
        "seconds": round(seconds, 3),
        "bytes_per_second": round(report.n_bytes / seconds) if seconds else None,
        "peak_rss_bytes": peak_rss_bytes(),
        "notes": [*notes, *report.notes],
        "ok": not report.problems,
    }


def load_line(output_dir: str, *, has_model: bool) -> str:
    """Spell the Python that loads what was converted, in transformers 4.57 and 5.

    Args:
        output_dir: Where it is.
        has_model: Whether it is a model, or a tokenizer alone.

    Returns:
        Such as 'AutoModelForCausalLM.from_pretrained("CodeLlama-7b-hf", dtype="auto")'.
    """
    path = repr(output_dir)  # which escapes what does not print, as a line has to
    if '"' not in path:
        path = f'"{path[1:-1]}"'
    if has_model:
        return f'AutoModelForCausalLM.from_pretrained({path}, dtype="auto")'
    return f"AutoTokenizer.from_pretrained({path})"


def ranks_load_line(output_dir: str, n_ranks: int, *, has_tokenizer: bool, is_llama_3: bool) -> str:
    """Spell the command with which Meta's code loads ranks.

    Args:
        output_dir: Where they are.
        n_ranks: How many.
        has_tokenizer: Whether tokenizer.model is there too.
        is_llama_3: Whether the ranks are for the program of Llama 3, which has a tokenizer of its
            own.

    Returns:
        Such as 'torchrun --nproc_per_node 2 example_completion.py --ckpt_dir CodeLlama-13b'.

    Source:
        The READMEs of meta-llama/codellama and of meta-llama/llama-models.
    """
    if is_llama_3:
        return (
            f"torchrun --nproc_per_node {n_ranks} -m models.llama3.scripts.completion "
            f"{shlex.quote(output_dir)} --world_size {n_ranks}"
        )
    tokenizer = shlex.quote(f"{output_dir}/tokenizer.model") if has_tokenizer else "FILE"
    return (
        f"torchrun --nproc_per_node {n_ranks} example_completion.py "
        f"--ckpt_dir {shlex.quote(output_dir)} --tokenizer_path {tokenizer}"
    )
