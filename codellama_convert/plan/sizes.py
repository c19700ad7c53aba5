"""Own how much a conversion may write, before anything is."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from codellama_convert.hugging_face.model_card import CARD_NAME
from codellama_convert.meta.checklist import CHECKLIST_NAME, checklist_bytes
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.original import MAX_REST_BYTES
from codellama_convert.storage.contents import Content

if TYPE_CHECKING:  # a plan of the one way loads nothing of the other
    from codellama_convert.plan.ranks.job import ReverseJob

# Of conversion.json; 70B has 723 tensors and 160 kB, or 210 kB where ranks were saved in an unusual way.
_RECORD_BYTES, _RECORD_BYTES_PER_ENTRY = 1 << 14, 1 << 9


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
    if not isinstance(job, Job) and job.options.checklist:
        listed = [*small_files, *(file.name for file in job.weight_files)]
        sizes[CHECKLIST_NAME] = checklist_bytes(listed)
    for file in job.weight_files:
        sizes[file.name] = file.n_bytes
        sizes[RECORD_NAME] += _RECORD_BYTES_PER_ENTRY * (len(file.tensors) + 1)
    return sizes


def _rest_digits(job: Job | ReverseJob) -> int:
    """Count the digits that say what the ranks hold beside the weights, at most."""
    if not isinstance(job, Job):
        return 2 * MAX_REST_BYTES if job.original else 0
    if job.weights is None:
        return 0
    weights = sum(
        prod(tensor.meta.part_shape) * tensor.spec.dtype.itemsize
        for tensor in job.weights.checkpoint.layout
    )
    stored = [sum(one.n_bytes for one in rank.storages.values()) for rank in job.ranks]
    return 2 * min(sum(max(n_bytes - weights, 0) for n_bytes in stored), MAX_REST_BYTES)
