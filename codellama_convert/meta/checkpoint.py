"""Own the input: what its files hold, and whether they belong together.

Everything that can be refused is refused here, before the first output byte. Know nothing of how
the weights are written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError, LayoutError
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.pth_reader import PickleCache, RankIndex, read_rank, read_vector
from codellama_convert.formats.sentencepiece import SentencePieceModel, read_sentencepiece_model
from codellama_convert.meta.find import CheckpointFiles, missing_tokenizer
from codellama_convert.meta.places import model_name
from codellama_convert.meta.rank_tensors import check_ranks, measure, require_layers
from codellama_convert.meta.state_dict import find_state_dict
from codellama_convert.model.config import ModelConfig, build_config, lagging_notes, parse_params
from codellama_convert.model.recognise import Recognised, check_model_size, is_released, recognise
from codellama_convert.model.releases import Flavor
from codellama_convert.model.tensor_table import TensorLayout, build_layout, meta_name_of
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import Dtype
from codellama_convert.tokenizer.hf_files import check_embedding_rows

_MAX_PARAMS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose structure was read and checked.

    Attributes:
        files: Where it lies.
        config: The model.
        recognised: Which released model it is.
        ranks: What each rank holds.
        layout: Where every output tensor comes from.
        dropped: Names that are left out.
        params_sha256: SHA-256 of params.json.
        tokenizer: tokenizer.model, or None where it is not wanted.
        notes: What the user should know.
    """

    files: CheckpointFiles
    config: ModelConfig
    recognised: Recognised
    ranks: tuple[RankIndex, ...]
    layout: tuple[TensorLayout, ...]
    dropped: tuple[str, ...]
    params_sha256: str
    tokenizer: SentencePieceModel | None
    notes: tuple[str, ...]

    @property
    def dtype(self) -> Dtype:
        """The ranks' dtype."""
        return self.layout[0].spec.dtype


def open_checkpoint(
    files: CheckpointFiles,
    *,
    model_size: str | None = None,
    flavor: Flavor | None = None,
    max_position_embeddings: int | None = None,
    skip_tokenizer: bool = False,
) -> Checkpoint:
    """Read a checkpoint's structure and check that all of it belongs together.

    Args:
        files: Where it lies.
        model_size: What the user says it is.
        flavor: What the user says it was tuned for.
        max_position_embeddings: The context length that the user says it has.
        skip_tokenizer: Whether to do without tokenizer.model.

    Returns:
        The checkpoint; of the weights, only the small copies of norms are read.

    Raises:
        ConvertError: If anything is missing, damaged, hostile or contradicts the rest.
    """
    content = _read_params(files.params)
    params, param_notes = parse_params(content, files.params)
    cache: PickleCache = {}
    ranks = tuple(read_rank(path, choose=find_state_dict, cache=cache) for path in files.ranks)
    intermediate_size, vocab_size = measure(ranks, hidden_size=params.dim)
    config = build_config(
        params, intermediate_size=intermediate_size, vocab_size=vocab_size, path=files.params
    )
    require_layers(ranks[0], config.num_hidden_layers)
    dtype = ranks[0].tensors[meta_name_of("embedding")].dtype
    layout = build_layout(config, n_ranks=len(ranks), dtype=dtype)
    dropped = check_ranks(layout, ranks)
    _refuse_copied_ranks(ranks)
    _compare_copies(layout, ranks)
    lagging = lagging_notes(params, intermediate_size=intermediate_size, vocab_size=vocab_size)
    tokenizer = None if skip_tokenizer else _open_tokenizer(files)
    row_notes = (
        ()
        if tokenizer is None
        else check_embedding_rows(tokenizer, vocab_size, is_released=is_released(config))
    )
    size_note = check_model_size(model_size, config, len(ranks)) if model_size else None
    recognised = recognise(
        config,
        folder_name=model_name(files.folder),
        flavor=flavor or ("chat" if model_size and model_size.endswith("f") else None),
        max_position_embeddings=max_position_embeddings,
    )
    digest = hashlib.sha256(content).hexdigest()
    notes = (
        *files.notes,
        *param_notes,
        *dict.fromkeys(note for rank in ranks for note in rank.notes),
        *lagging,
        *row_notes,
        *_unsummed_notes(ranks),
        *_renamed_notes(ranks),
        *((size_note,) if size_note else ()),
        *recognised.notes,
    )
    return Checkpoint(files, config, recognised, ranks, layout, dropped, digest, tokenizer, notes)


def _read_params(path: Path) -> bytes:
    """Read params.json whole; refuse what is too large for it, or a web page."""
    with InputFile(path, error=ConfigError) as file:
        content = file.read_whole(_MAX_PARAMS_BYTES, hint="download it again")
    refuse_other_kind(content[:HEAD_BYTES], "JSON", path=path, error=ConfigError)
    return content


def _open_tokenizer(files: CheckpointFiles) -> SentencePieceModel:
    if files.tokenizer is None:
        raise missing_tokenizer(
            files.folder,
            hint="give its path with --tokenizer_model, or convert only the weights with --skip_tokenizer",
        )
    return read_sentencepiece_model(files.tokenizer)


def _unsummed_notes(ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Say which ranks were saved without sums: a flipped bit in them would go into the output."""
    bare = [rank for rank in ranks if any(s.crc is None for s in rank.storages.values())]
    if not bare:
        return ()
    others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
    note = (
        f"{bare[0].path.name}{others}: saved without CRC-32 sums, so damage cannot be detected; "
        "--checksums strict compares them with checklist.chk"
    )
    return (note,)


def _renamed_notes(ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Say which ranks were saved under the number of another: every tensor would be joined wrongly.

    torch calls a zip's root folder after the file that it writes; where all ranks have one root,
    it tells nothing of their order.
    """
    if len({rank.root for rank in ranks}) == 1:
        return ()
    renamed = [
        rank
        for index, rank in enumerate(ranks)
        if re.fullmatch(r"consolidated\.\d\d", rank.root) and int(rank.root[-2:]) != index
    ]
    if not renamed:
        return ()
    others = f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""
    note = (
        f"{renamed[0].path.name}{others}: saved as {renamed[0].root}.pth and renamed; if ranks "
        "changed places, the model is wrong"
    )
    return (note,)


def _refuse_copied_ranks(ranks: Sequence[RankIndex]) -> None:
    """Refuse two ranks of the same content, which a copied or twice downloaded file is."""
    seen: dict[tuple[Any, ...], RankIndex] = {}
    for rank in ranks:
        twin = seen.setdefault(rank.inode, rank)
        if twin is not rank:
            raise LayoutError(
                f"is the same file as {twin.path.name}", path=rank.path, hint="download it again"
            )
        storages = tuple((s.name, s.n_bytes, s.crc) for s in rank.storages.values())
        if any(crc is None for _, _, crc in storages):
            continue  # without checksums, equal sizes prove nothing
        # Ranks that were saved as views have the same storages, and other places in them.
        views = tuple(
            (t.name, t.storage.name, t.storage_offset, t.shape, t.strides)
            for t in rank.tensors.values()
        )
        first = seen.setdefault((storages, views), rank)
        if first is not rank:
            raise LayoutError(
                f"holds the same weights as {first.path.name}: one rank was copied over another",
                path=rank.path,
                hint="download it again",
            )


def _compare_copies(layout: Sequence[TensorLayout], ranks: Sequence[RankIndex]) -> None:
    """Compare the tensors that every rank has a copy of, bit for bit, with rank 0's."""
    replicated = [tensor for tensor in layout if tensor.is_copied]
    if len(ranks) == 1:
        return
    with InputFile(ranks[0].path) as first:
        expected = {
            tensor.meta_name: read_vector(first, ranks[0].tensors[tensor.meta_name])
            for tensor in replicated
        }
    for rank in ranks[1:]:
        with InputFile(rank.path) as file:
            for name, content in expected.items():
                found = read_vector(file, rank.tensors[name])
                if found != content:
                    raise _unequal_copy(rank, name, found, content, of=ranks[0])


def _unequal_copy(
    rank: RankIndex, name: str, found: bytes, content: bytes, *, of: RankIndex
) -> LayoutError:
    itemsize = rank.tensors[name].dtype.itemsize
    at = next(i for i, pair in enumerate(zip(content, found, strict=True)) if pair[0] != pair[1])
    element = at // itemsize
    where = slice(element * itemsize, (element + 1) * itemsize)
    return LayoutError(
        f"tensor {name!r} differs from that of {of.path.name} at element {element} (bits "
        f"{found[where].hex()}, there {content[where].hex()}); every rank must have the same copy",
        path=rank.path,
        hint="the files are of different models, or one is corrupt",
    )
