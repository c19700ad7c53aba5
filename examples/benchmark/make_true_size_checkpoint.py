"""Make a checkpoint of a true Code Llama or Llama 3.1 size without its weights, or with made-up ones.

Example: python examples/benchmark/make_true_size_checkpoint.py CodeLlama-7b --size 7B --layers 2

Files, names, shapes, splits and checksums are those of a release. The weights are holes that take
no disk (--sparse), or one block of normal values used again and again; they are never held in RAM.
The CRC-32s are true in both cases, so that a reader of the checkpoint has to compute them.
Llama 3.1's tokenizer is that of Meta's package llama-models; without it there is none.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, islice, product
from pathlib import Path

import click
from rank_filler import (
    Pattern,
    fill_record,
    find_records,
    near_one,
    open_twice,
    save_holes,
    write_head,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where make_tiny_checkpoint.py lies

ELEMENT_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Size:
    """A released model, in the spelling of Meta's params.json.

    Attributes:
        folder: Name of the release's folder.
        n_ranks: Files that the weights are split over.
        dim: Width of the embedding.
        n_layers: Transformer layers.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        hidden: Width of the feed-forward layers.
        vocab_size: Rows of the embedding and pieces of the tokenizer.
        multiple_of: Of the feed-forward width.
        ffn_dim_multiplier: Of the feed-forward width.
        llama_3: Whether it is a Llama 3.1, and no Code Llama.
    """

    folder: str
    n_ranks: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    vocab_size: int
    multiple_of: int = 256
    ffn_dim_multiplier: float = 1.0
    llama_3: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights, copies in every rank not counted."""
        kv_dim = self.dim // self.n_heads * self.n_kv_heads
        matrices = 2 * self.dim + 2 * kv_dim + 3 * self.hidden
        layer = self.dim * (matrices + 2)
        return ELEMENT_BYTES * (2 * self.vocab_size * self.dim + self.n_layers * layer + self.dim)

    def params(self) -> dict[str, int | float]:
        """Return the content of params.json, keys and order as in the release."""
        if self.llama_3:
            return {
                "dim": self.dim,
                "n_layers": self.n_layers,
                "n_heads": self.n_heads,
                "n_kv_heads": self.n_kv_heads,
                "vocab_size": self.vocab_size,
                "ffn_dim_multiplier": self.ffn_dim_multiplier,
                "multiple_of": self.multiple_of,
                "norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "use_scaled_rope": True,
            }
        kv_heads = {"n_kv_heads": self.n_kv_heads} if self.n_kv_heads != self.n_heads else {}
        return {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            **kv_heads,
            "multiple_of": self.multiple_of,
            "ffn_dim_multiplier": self.ffn_dim_multiplier,
            "norm_eps": 1e-5,
            "rope_theta": 1000000,
        }


# meta-llama/codellama: params.json and MODEL_CARD; meta-llama/llama-models: sku_list.py.
# "tiny" is for tests.
SIZES = {
    "7B": Size("CodeLlama-7b", 1, 4096, 32, 32, 32, 11008, 32016),
    "13B": Size("CodeLlama-13b", 2, 5120, 40, 40, 40, 13824, 32016),
    "34B": Size("CodeLlama-34b", 4, 8192, 48, 64, 8, 22016, 32000),
    "70B": Size("CodeLlama-70b", 8, 8192, 80, 64, 8, 28672, 32016, 4096, 1.3),
    "Llama3.1-8B": Size("Llama3.1-8B", 1, 4096, 32, 32, 8, 14336, 128256, 1024, 1.3, llama_3=True),
    "Llama3.1-405B": Size(
        "Llama3.1-405B", 8, 16384, 126, 128, 8, 53248, 128256, 4096, 1.2, llama_3=True
    ),
    "tiny": Size("CodeLlama-tiny", 2, 512, 2, 16, 8, 1536, 512),
}


def part_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """List the tensors of one rank.

    Args:
        size: The model.

    Returns:
        Shapes by Meta's names, in the order of Meta's module; the rotary buffer last. Llama 3 has
        none, and splits its embedding by rows.
    """
    from make_tiny_checkpoint import Model, tensor_shapes  # noqa: PLC0415 - imports torch

    model = Model(
        size.dim, size.n_layers, size.n_heads, size.n_kv_heads, size.hidden, size.vocab_size
    )
    shapes = {
        name: tuple(n // size.n_ranks if i == split_dim else n for i, n in enumerate(shape))
        for name, shape, split_dim in tensor_shapes(model)
    }
    if size.llama_3:
        return shapes | {"tok_embeddings.weight": (size.vocab_size // size.n_ranks, size.dim)}
    return shapes | {"rope.freqs": (size.dim // size.n_heads // 2,)}


def write_rank(path: Path, size: Size, rank: int, pattern: Pattern | None) -> None:
    """Write one consolidated.NN.pth.

    Args:
        path: The new file.
        size: The model.
        rank: Its number.
        pattern: The values; None leaves holes.
    """
    shapes = part_shapes(size)
    save_holes(path, shapes)
    fds = open_twice(path)
    try:
        records = zip(shapes.items(), find_records(path), strict=True)
        for number, ((name, shape), record) in enumerate(records):
            if len(shape) == 1:
                head = near_one(shape[0], number) if pattern else b""
                crc = write_head(fds[0], record, head)
            elif pattern:
                crc = fill_record(fds, record, pattern, f"{name} {rank}")
            else:
                # Without a difference the ranks would look like copies of one.
                head = struct.pack("<2H", 0x3C00 + rank, 0x3C00) if name == "output.weight" else b""
                crc = write_head(fds[0], record, head)
            for position in record.crc_positions:
                os.pwrite(fds[0], struct.pack("<I", crc), position)
        os.fsync(fds[0])
    finally:
        for fd in fds:
            os.close(fd)


def varint(value: int) -> bytes:
    """Encode a number as protobuf does."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def message(number: int, content: bytes) -> bytes:
    """Encode a protobuf field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def numbers(fields: dict[int, int]) -> bytes:
    """Encode protobuf fields of whole numbers."""
    return b"".join(varint(key << 3) + varint(value) for key, value in fields.items())


def tokenizer_model(n_pieces: int) -> bytes:
    """Build a SentencePiece model as Meta's trainer settings describe it, of made-up pieces.

    Args:
        n_pieces: Exactly so many; 16 beyond 32,000 are Code Llama's infill pieces.

    Returns:
        The content of a tokenizer.model.

    Source:
        google/sentencepiece src/sentencepiece_model.proto.
    """
    from make_tiny_checkpoint import INFILL_PIECES, add_infill_pieces  # noqa: PLC0415

    infill = n_pieces % 1000 == len(INFILL_PIECES)
    n_plain = n_pieces - len(INFILL_PIECES) if infill else n_pieces
    special = ((b"<unk>", 2), (b"<s>", 3), (b"</s>", 3))
    single_bytes = ((f"<0x{byte:02X}>".encode(), 6) for byte in range(256))
    letters = "\u2581abcdefghijklmnopqrstuvwxyz0123456789"
    # The infill pieces need their letters alone too, as every longer piece does.
    alone = letters + "".join(sorted({c for text, _ in INFILL_PIECES for c in text} - set(letters)))
    words = chain(alone, product(letters, repeat=2), product(letters, repeat=3))
    normal = (("".join(word).encode(), 1) for word in islice(words, n_plain - 259))
    content = b"".join(
        message(
            1, message(1, text) + b"\x15" + struct.pack("<f", min(0, 258 - i)) + numbers({3: kind})
        )
        for i, (text, kind) in enumerate(chain(special, single_bytes, normal))
    )
    no_padding_piece = (1 << 64) - 1  # -1
    trainer = {3: 2, 4: n_plain, 25: 1, 26: 1, 35: 1, 40: 0, 41: 1, 42: 2, 43: no_padding_piece}
    content += message(2, numbers(trainer))
    content += message(3, message(1, b"identity") + numbers({3: 1, 4: 0, 5: 1}))
    return add_infill_pieces(content) if infill else content


def write_tokenizer(folder: Path, size: Size) -> None:
    """Write tokenizer.model: of made-up pieces, or Llama 3's own where its package is installed."""
    if not size.llama_3:
        (folder / "tokenizer.model").write_bytes(tokenizer_model(size.vocab_size))
        return
    spec = find_spec("llama_models")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        shutil.copyfile(Path(place) / "llama3" / "tokenizer.model", folder / "tokenizer.model")


def write_checkpoint(folder: Path, size: Size, *, sparse: bool) -> None:
    """Write the files of a checkpoint; params.json comes last, so a torn one has none.

    Args:
        folder: Made if missing.
        size: The model.
        sparse: Whether the weights are holes.

    Raises:
        click.UsageError: If the folder is not empty, or the disk too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty")
    free = shutil.disk_usage(folder).free
    if not sparse and free < size.n_bytes:
        raise click.UsageError(f"{size.n_bytes:,} bytes are needed, {free:,} are free")
    pattern = None if sparse else Pattern()
    for rank in range(size.n_ranks):
        write_rank(folder / f"consolidated.{rank:02d}.pth", size, rank, pattern)
    write_tokenizer(folder, size)
    (folder / "params.json").write_text(json.dumps(size.params()) + "\n", encoding="utf-8")


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    default="7B",
    help="Of the release; Code Llama's where no family is named.",
)
@click.option("--layers", type=click.IntRange(1), help="Fewer layers; all of them if absent.")
@click.option("--sparse", is_flag=True, help="Leave the weights zero; takes next to no disk.")
def main(folder: Path, *, size: str, layers: int | None, sparse: bool) -> None:
    """Make a checkpoint of a true size in FOLDER.

    Example: python examples/benchmark/make_true_size_checkpoint.py CodeLlama-7b --size 7B --layers 2
    """
    model = SIZES[size]
    write_checkpoint(folder, replace(model, n_layers=layers or model.n_layers), sparse=sparse)


if __name__ == "__main__":
    main()
