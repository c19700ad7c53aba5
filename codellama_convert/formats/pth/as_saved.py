"""Own the question what torch.save was given: answered only where it would write the same file again."""

from __future__ import annotations

from codellama_convert.choices import TORCH_LAYOUTS, TorchLayout
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.pth.saved_rank import SavedRank, SavedTensor
from codellama_convert.formats.pth.writer import RankFilePlan, lay_out
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import TensorSpec


def find_saved(index: RankIndex) -> tuple[SavedRank, TorchLayout, RankFilePlan] | None:
    """Find out what torch.save was given, and which torch it was.

    Args:
        index: What the file holds.

    Returns:
        Both, and where everything lies; None where no known torch would write the file's bytes
        again: every one that is not data is compared.

    Raises:
        CheckpointError: If the file ends before, or cannot be read.
    """
    if index.dropped or not index.has_sums:
        return None
    crcs = [storage.crc for storage in index.storages.values() if storage.crc is not None]
    rank = as_declared(index)
    for layout in TORCH_LAYOUTS:
        try:
            plan = lay_out(rank, layout)
        except CheckpointError:
            return None
        if plan.n_bytes == index.n_bytes and _has_these_bytes(index, plan, crcs):
            return rank, layout, plan
    return None


def as_declared(index: RankIndex) -> SavedRank:
    """Say what the pickle says, as far as torch.save can have been given it."""
    numbers = {name: number for number, name in enumerate(index.storages)}
    tensors = tuple(
        SavedTensor(
            TensorSpec(name, tensor.dtype, tensor.shape),
            numbers[tensor.storage.name],
            tensor.storage_offset,
        )
        for name, tensor in index.tensors.items()
    )
    n_elements = (one.n_bytes // one.dtype.itemsize for one in index.storages.values())
    return SavedRank(tensors, tuple(n_elements), index.root, index.container, index.location)


def _has_these_bytes(index: RankIndex, plan: RankFilePlan, crcs: list[int]) -> bool:
    with InputFile(index.path) as file:
        if (file.inode, file.n_bytes, file.mtime_ns) != (
            index.inode,
            index.n_bytes,
            index.mtime_ns,
        ):
            return False
        return all(
            file.read_exact(position, len(piece)) == piece for position, piece in plan.pieces(crcs)
        )
