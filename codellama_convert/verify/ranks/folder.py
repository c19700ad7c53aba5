"""Own the reading of written ranks: which there are, and what each says it holds.

Each is parsed by the strict reader, to which a file that lies about itself is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from codellama_convert.choices import TORCH_LAYOUTS, TorchLayout
from codellama_convert.errors import ConvertError, VerifyError
from codellama_convert.formats.pth.as_saved import as_declared
from codellama_convert.formats.pth.reader import RankIndex, read_rank
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.formats.stored_tensor import StoredTensor
from codellama_convert.model.asked import AskedRanks
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import DROPPED_SUFFIX, meta_name_of
from codellama_convert.storage.folders import names_in
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.output_files import CONVERT_AGAIN, Complain

PARAMS_NAME, TOKENIZER_NAME = "params.json", "tokenizer.model"
CHECKLIST_NAME = "checklist.chk"
_RANK = re.compile(r"consolidated\.([0-9]{2})\.pth")

Ranks = Mapping[int, RankIndex]


def rank_name(number: int) -> str:
    """Name a rank's file as Meta's loaders look for it."""
    return f"consolidated.{number:02d}.pth"


def is_rank(name: str) -> bool:
    """Return whether a file of this name is a rank."""
    return _RANK.fullmatch(name) is not None


def holds_ranks(folder: Path) -> bool:
    """Return whether an output is a folder of ranks, and not one in Hugging Face's format.

    Args:
        folder: The output.

    Raises:
        VerifyError: If it cannot be read.
    """
    names = names_in(folder, error=VerifyError)
    if INDEX_NAME in names or SINGLE_FILE_NAME in names:
        return False
    return any(map(is_rank, names)) or PARAMS_NAME in names


def read_ranks(folder: Path, complain: Complain) -> dict[int, RankIndex]:
    """Read what the ranks of a folder say they hold.

    Args:
        folder: The output.
        complain: Called for each that cannot be parsed.

    Returns:
        Those that can, by number.

    Raises:
        VerifyError: If there is none.
    """
    found = {}
    names = [name for name in sorted(names_in(folder, error=VerifyError)) if is_rank(name)]
    if not names:
        raise VerifyError(
            f"holds no {rank_name(0)}",
            path=folder,
            hint="convert first, or finish a conversion that was stopped",
        )
    for name in names:
        try:
            found[int(name.split(".")[1])] = read_rank(folder / name)
        except ConvertError as problem:  # noqa: PERF203 - a few ranks
            complain(f"{problem.message}; {CONVERT_AGAIN}", file=name)
    return found


def as_stored(path: Path, tensor: StoredTensor) -> StoredOutput:
    """Say where a tensor lies whose elements are in order."""
    first, end = tensor.extent
    at = tensor.storage.offset + first
    return StoredOutput(path, tensor.dtype, tensor.shape, at, end - first)


def stored_in(rank: RankIndex) -> dict[str, StoredOutput]:
    """Say where the tensors of a rank lie, those whose bytes are theirs alone and in order."""
    stored: dict[str, StoredOutput] = {}
    end = 0
    for name, tensor in sorted(rank.tensors.items(), key=lambda one: _begin(one[1])):
        one = as_stored(rank.path, tensor)
        if tensor.row_major and one.offset >= end:
            stored[name], end = one, one.offset + one.n_bytes
    return stored


def _begin(tensor: StoredTensor) -> int:
    return tensor.storage.offset + tensor.extent[0]


def shown_by(ranks: Ranks, config: ModelConfig) -> AskedRanks:
    """Read from ranks without a record what their source does not say.

    Args:
        ranks: Those that were read.
        config: The model that the source holds.

    Returns:
        What stands there, where a conversion could have been asked for it.
    """
    if not ranks:
        return AskedRanks()
    first = ranks[min(ranks)]
    weights = [
        tensor
        for rank in ranks.values()
        for name, tensor in rank.tensors.items()
        if not _is_dropped(name)
    ]
    dtypes = {tensor.dtype.name for tensor in weights}
    return AskedRanks(
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        ranks=_count_shown(first, config),
        rope_freqs=any(map(_is_dropped, first.tensors)),
        torch_layout=_layout_shown(first),
    )


def _is_dropped(name: str) -> bool:
    return name.endswith(DROPPED_SUFFIX)


def _count_shown(rank: RankIndex, config: ModelConfig) -> int | None:
    """Count the ranks by the rows that one has of the first query projection."""
    query = rank.tensors.get(meta_name_of("query"))
    if query is None or 0 in query.shape or not query.shape:
        return None
    n_ranks, rest = divmod(config.hidden_size, query.shape[0])
    return n_ranks if rest == 0 and config.num_key_value_heads % n_ranks == 0 else None


def _layout_shown(rank: RankIndex) -> TorchLayout | None:
    """Find the layout in which such tensors make a file of this size."""
    with suppress(ConvertError):  # not what torch.save writes: reported when it is compared
        saved = as_declared(rank)
        for layout in TORCH_LAYOUTS:
            if lay_out(saved, layout).n_bytes == rank.n_bytes:
                return layout
    return None
