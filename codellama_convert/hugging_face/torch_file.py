"""Own which entries of a pytorch_model.bin are the model's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codellama_convert.formats.pth.declared import Declared
from codellama_convert.formats.pth.pickle_names import View
from codellama_convert.formats.pth.reader import RankIndex, read_rank
from codellama_convert.hugging_face.buffers import is_mask


def read_torch_file(path: Path) -> RankIndex:
    """Read which tensors a pytorch_model.bin holds, by the same inert reader as Meta's ranks.

    Args:
        path: The file.

    Returns:
        The index; masks, which may be of any dtype, are left out unseen.

    Raises:
        CheckpointError: If the file is damaged, hostile or of another kind.
    """
    return read_rank(path, choose=_without_masks)


def _without_masks(path: Path, top: Mapping[Any, Any]) -> Declared:
    del path
    masks = {
        name
        for name, one in top.items()
        if type(name) is str and type(one) is View and is_mask(name)
    }
    kept = {name: one for name, one in top.items() if name not in masks}
    return Declared(kept, dict.fromkeys(sorted(masks), ()))
