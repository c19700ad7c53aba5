"""Own the input: which files of a folder make a checkpoint, and whether they belong together.

Everything that can be refused is refused here, before the first output byte. Know nothing of how
the weights are written.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.archive import describe_other_kind
from codellama_convert.config import ModelConfig, build_config, parse_params
from codellama_convert.errors import CheckpointError, ConfigError, LayoutError, TokenizerError
from codellama_convert.files import first_line
from codellama_convert.input_file import InputFile
from codellama_convert.layout import (
    TensorLayout,
    build_layout,
    check_ranks,
    measure,
    require_layers,
)
from codellama_convert.pth import PickleCache, RankIndex, read_rank, read_vector
from codellama_convert.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from codellama_convert.tensors import Dtype
from codellama_convert.tokenizer import check_embedding_rows
from codellama_convert.variants import Flavor, Identity, check_model_size, identify

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"
_RANK_NAME = re.compile(r"consolidated\.([0-9]{2})\.pth")
_MAX_PARAMS_BYTES = 1 << 20
_OTHER_WEIGHTS = (".safetensors", ".gguf", ".bin", ".index.json")
_MAX_RANKS = 8  # Llama 1 65B, Llama 2 70B and Code Llama 70B


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one Meta checkpoint, not yet read.

    Attributes:
        folder: Where the ranks lie.
        params: params.json.
        ranks: consolidated.NN.pth in order.
        tokenizer: tokenizer.model, inside the folder or beside it; None where there is none.
        notes: What was passed over.
    """

    folder: Path
    params: Path
    ranks: tuple[Path, ...]
    tokenizer: Path | None
    notes: tuple[str, ...]

    def all(self) -> tuple[Path, ...]:
        """List every file that is read."""
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        return (self.params, *self.ranks, *tokenizer)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose structure was read and checked.

    Attributes:
        files: Where it lies.
        config: The model.
        identity: Which released model it is.
        ranks: What each rank holds.
        layout: Where every output tensor comes from.
        dropped: Names that are left out.
        params_sha256: SHA-256 of params.json.
        tokenizer: tokenizer.model, or None where it is not wanted.
        notes: What the user should know.
    """

    files: CheckpointFiles
    config: ModelConfig
    identity: Identity
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


def find_model_folder(input_dir: Path, model_size: str | None) -> Path:
    """Find the folder that holds the checkpoint: the given one, or one inside it.

    Args:
        input_dir: The model's folder, or one that holds it as Meta's download scripts lay it.
        model_size: Such as "7B"; chooses among several.

    Returns:
        The folder with the ranks.

    Raises:
        CheckpointError: If none or several are found.
    """
    if _holds_checkpoint(input_dir):
        return input_dir
    try:
        inside = sorted(path for path in input_dir.iterdir() if path.is_dir())
    except OSError as problem:
        raise CheckpointError(f"cannot open: {first_line(problem)}", path=input_dir) from problem
    found = held = [path for path in inside if _holds_checkpoint(path)]
    if model_size is not None:
        size = re.escape(model_size.removesuffix("f"))
        found = [
            p for p in found if re.search(rf"(?<![0-9]){size}(?![a-z])", p.name, re.IGNORECASE)
        ]
        exact = [path for path in found if path.name.lower() == model_size.lower()]
        found = exact or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or held)
    if found:
        raise CheckpointError(
            f"holds several checkpoints ({names})", path=input_dir, hint="name one with --input_dir"
        )
    if held:
        raise CheckpointError(
            f"holds no checkpoint whose folder's name says {model_size}, but {names}",
            path=input_dir,
            hint="name one with --input_dir",
        )
    raise _holds_none(input_dir)


def _holds_none(folder: Path) -> CheckpointError:
    """Say that a folder is none of Meta's, and what it is instead where that can be told."""
    what = "holds no consolidated.NN.pth and no params.json"
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" in names or any(name.endswith(_OTHER_WEIGHTS) for name in names):
        example = next((n for n in names if n.endswith(_OTHER_WEIGHTS)), "config.json")
        what += f", but {example}: it is no checkpoint in Meta's layout (a converted one?)"
    return CheckpointError(
        what,
        path=folder,
        hint="--input_dir is the folder that Meta's download script made, such as CodeLlama-7b",
    )


def _holds_checkpoint(folder: Path) -> bool:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return PARAMS_NAME in names or any(_RANK_NAME.fullmatch(name) for name in names)


def find_tokenizer(input_dir: Path, folder: Path, tokenizer_model: Path | None) -> Path | None:
    """Find tokenizer.model: where the user says, inside the model's folder, or beside it.

    Args:
        input_dir: As the user gave it.
        folder: The model's folder.
        tokenizer_model: As the user gave it.

    Returns:
        The file, or None.
    """
    if tokenizer_model is not None:
        return tokenizer_model
    places = (folder, input_dir, folder.absolute().parent)
    candidates = (place / TOKENIZER_NAME for place in places)
    # A dangling link counts: its own error says more than "missing".
    return next((path for path in candidates if os.path.lexists(path)), None)


def find_files(
    input_dir: Path, *, model_size: str | None = None, tokenizer_model: Path | None = None
) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        input_dir: The model's folder, or one that holds it.
        model_size: Chooses among several models.
        tokenizer_model: Where tokenizer.model is, if elsewhere.

    Returns:
        The files.

    Raises:
        CheckpointError: If there is none, or a rank is missing in the middle.
    """
    folder = find_model_folder(input_dir, model_size)
    names = sorted(path.name for path in folder.iterdir())
    numbers = [int(match[1]) for match in map(_RANK_NAME.fullmatch, names) if match]
    alike = [name for name in names if ".pth" in name and not _RANK_NAME.fullmatch(name)]
    if not numbers:
        raise CheckpointError(
            "holds no consolidated.NN.pth" + (f", but {', '.join(alike)}" if alike else ""),
            path=folder,
            hint="Meta's ranks are named consolidated.00.pth, consolidated.01.pth and so on; "
            "was the download finished, or a file renamed?",
        )
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if missing:
        found = ", ".join(f"consolidated.{number:02d}.pth" for number in sorted(numbers))
        raise CheckpointError(
            f"consolidated.{missing[0]:02d}.pth is missing; found were {', '.join([found, *alike])}",
            path=folder,
            hint="download it, or give it back its name",
        )
    if len(numbers) > _MAX_RANKS:
        raise CheckpointError(
            f"holds {len(numbers)} ranks; no model has more than {_MAX_RANKS}",
            path=folder,
            hint="remove those of another model",
        )
    if PARAMS_NAME not in names:
        raise ConfigError(
            "No such file",
            path=folder / PARAMS_NAME,
            hint="it is downloaded with the ranks; get it from where they are from",
        )
    others = [n for n in names if n in alike or n.endswith(".pt")]
    return CheckpointFiles(
        folder=folder,
        params=folder / PARAMS_NAME,
        ranks=tuple(folder / f"consolidated.{number:02d}.pth" for number in numbers),
        tokenizer=find_tokenizer(input_dir, folder, tokenizer_model),
        notes=(f"ignored {', '.join(others)}",) if others else (),
    )


def read_small_file(path: Path, max_bytes: int, error: type[ConfigError]) -> bytes:
    """Read a small text file whole.

    Args:
        path: The file.
        max_bytes: The largest plausible size.
        error: What kind of problem an unreadable one is.

    Returns:
        Its bytes.

    Raises:
        ConvertError: (the given kind) If it cannot be read, is too large, or is a web page.
    """
    with InputFile(path, error=error) as file:
        if file.n_bytes > max_bytes:
            raise error(
                f"has {file.n_bytes} bytes, too many for what it should be",
                path=path,
                hint="download it again",
            )
        content = file.read_exact(0, file.n_bytes)
    other = describe_other_kind(content[:512])
    if other is not None:
        raise error(other[0], path=path, hint=other[1])
    return content


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
    content = read_small_file(files.params, _MAX_PARAMS_BYTES, ConfigError)
    params, param_notes = parse_params(content, files.params)
    cache: PickleCache = {}
    ranks = tuple(read_rank(path, cache=cache) for path in files.ranks)
    intermediate_size, vocab_size = measure(ranks, hidden_size=params.dim)
    config = build_config(
        params, intermediate_size=intermediate_size, vocab_size=vocab_size, path=files.params
    )
    require_layers(ranks[0], config.num_hidden_layers)
    dtype = ranks[0].tensors["tok_embeddings.weight"].dtype
    layout = build_layout(config, n_ranks=len(ranks), dtype=dtype)
    dropped = check_ranks(layout, ranks)
    _refuse_copied_ranks(ranks)
    _compare_copies(layout, ranks)
    tokenizer = None if skip_tokenizer else _open_tokenizer(files, config)
    size_note = check_model_size(model_size, config, len(ranks)) if model_size else None
    identity = identify(
        config,
        folder_name=files.folder.resolve().name,
        flavor=flavor or ("chat" if model_size and model_size.endswith("f") else None),
        max_position_embeddings=max_position_embeddings,
    )
    digest = hashlib.sha256(content).hexdigest()
    notes = (
        *files.notes,
        *param_notes,
        *_unsummed_notes(ranks),
        *((size_note,) if size_note else ()),
        *identity.notes,
    )
    return Checkpoint(files, config, identity, ranks, layout, dropped, digest, tokenizer, notes)


def _open_tokenizer(files: CheckpointFiles, config: ModelConfig) -> SentencePieceModel:
    if files.tokenizer is None:
        raise TokenizerError(
            f"no {TOKENIZER_NAME} in the folder or beside it",
            path=files.folder,
            hint="name it with --tokenizer_model, or convert the weights alone with --skip_tokenizer",
        )
    model = read_sentencepiece_model(files.tokenizer)
    check_embedding_rows(model, config.vocab_size)
    return model


def _unsummed_notes(ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Say which ranks were saved without sums: a flipped bit in them would go into the output."""
    bare = [rank for rank in ranks if any(s.crc is None for s in rank.storages.values())]
    if not bare:
        return ()
    others = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
    note = (
        f"{bare[0].path.name}{others}: saved without CRC-32 sums, so damage cannot be seen; "
        "--checksums strict compares them with checklist.chk"
    )
    return (note,)


def _refuse_copied_ranks(ranks: Sequence[RankIndex]) -> None:
    """Refuse two ranks of the same content, which a copied or twice downloaded file is."""
    seen: dict[tuple[int, int] | tuple[tuple[str, int, int | None], ...], RankIndex] = {}
    for rank in ranks:
        twin = seen.setdefault(rank.identity, rank)
        if twin is not rank:
            raise LayoutError(
                f"is the same file as {twin.path.name}", path=rank.path, hint="download it again"
            )
        content = tuple((s.name, s.n_bytes, s.crc) for s in rank.storages.values())
        if any(crc is None for _, _, crc in content):
            continue  # without checksums, equal sizes prove nothing
        first = seen.setdefault(content, rank)
        if first is not rank:
            raise LayoutError(
                f"holds the same weights as {first.path.name}: one rank was copied over another",
                path=rank.path,
                hint="download it again",
            )


def _compare_copies(layout: Sequence[TensorLayout], ranks: Sequence[RankIndex]) -> None:
    """Compare the tensors that every rank has a copy of, bit for bit, with rank 0's."""
    replicated = [tensor for tensor in layout if tensor.tp_dim is None]
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
