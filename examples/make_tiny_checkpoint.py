"""Make a tiny random checkpoint in the layout of Meta's Code Llama, for smoke conversions.

Example: python examples/make_tiny_checkpoint.py tiny-checkpoint --ranks 2 --n_kv_heads 2

The weights are noise and the text below is all that the tokenizer has read, but names, shapes,
splits and files are those of a released checkpoint. The same options give the same bytes.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import click
import sentencepiece
import torch

TEXT = """\
def greatest_common_divisor(a: int, b: int) -> int:
    while b != 0:
        a, b = b, a % b
    return a

class Stack:
    def __init__(self) -> None:
        self.items = []

    def push(self, item) -> None:
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

for (int i = 0; i < 10; ++i) { printf("%d\\n", i * i); }
SELECT name, count(*) FROM rivers WHERE length > 1000 GROUP BY name ORDER BY name;
The quick brown fox jumps over the lazy dog, and the dog looks up and yawns.
A river begins as rain on the hills; it gathers small streams and grows wide near the sea.
Once the harvest was in, the miller opened the sluice and the wheel began to turn again.
In 1969 two people walked on the moon & came home; 3 + 4 = 7, 12 / 5 = 2.4, 8 ~ 2^3, #6 @ $9.
"""

# meta-llama/codellama: the pieces that 7B and 13B have behind the 32,000 of Llama 2, with scores.
INFILL_PIECES = (
    *((f"\u2581{text}", -1e9) for text in ("<SU", "<SUF", "<PRE", "<M", "<MID", "<E", "<EOT")),
    *((f"\u2581{text}", -1e18) for text in ("<PRE>", "<SUF>", "<MID>", "<EOT>")),
    *(("\u2581" + n * "<EOT>", -1e18) for n in range(2, 7)),
)


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes of a model, in the spelling of Meta's params.json.

    Attributes:
        dim: Width of the embedding.
        n_layers: Transformer layers.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        hidden: Width of the feed-forward layers.
        vocab_size: Rows of the embedding and pieces of the tokenizer.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    vocab_size: int


def feed_forward_width(dim: int, multiple_of: int, ffn_dim_multiplier: float) -> int:
    """Compute the width of the feed-forward layers.

    Args:
        dim: Width of the embedding.
        multiple_of: The result is rounded up to a multiple of it.
        ffn_dim_multiplier: Scales the width before rounding.

    Returns:
        The width.

    Source:
        meta-llama/codellama llama/model.py, `FeedForward` and `TransformerBlock`.
    """
    width = int(ffn_dim_multiplier * int(2 * (4 * dim) / 3))
    return multiple_of * -(-width // multiple_of)


def check_split(model: Model, n_ranks: int) -> None:
    """Check that heads are whole and every split dimension divides by the ranks.

    Args:
        model: The sizes.
        n_ranks: Files to split the weights over.

    Raises:
        click.UsageError: If Meta's code could not build such a model.
    """
    if model.dim % (2 * model.n_heads) or model.n_heads % model.n_kv_heads:
        raise click.UsageError(
            f"dim {model.dim}, {model.n_heads} heads and {model.n_kv_heads} key/value heads do not"
            " fit: dim / heads must be even, heads a multiple of key/value heads"
        )
    for what, size in (
        ("--dim", model.dim),
        ("--n_heads", model.n_heads),
        ("--n_kv_heads", model.n_kv_heads),
        ("--vocab_size", model.vocab_size),
        ("the feed-forward width", model.hidden),
    ):
        if size % n_ranks:
            raise click.UsageError(f"{what} {size} does not divide by {n_ranks} ranks")


def tensor_shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """List the tensors of an unsplit model.

    Args:
        model: The sizes.

    Yields:
        Name, shape, and the dimension that is split over ranks (None: every rank has a copy).

    Source:
        meta-llama/codellama llama/model.py; fairscale nn/model_parallel/layers.py.
    """
    dim, hidden = model.dim, model.hidden
    kv_dim = dim // model.n_heads * model.n_kv_heads
    yield "tok_embeddings.weight", (model.vocab_size, dim), 1
    for layer in range(model.n_layers):
        prefix = f"layers.{layer}"
        yield f"{prefix}.attention.wq.weight", (dim, dim), 0
        yield f"{prefix}.attention.wk.weight", (kv_dim, dim), 0
        yield f"{prefix}.attention.wv.weight", (kv_dim, dim), 0
        yield f"{prefix}.attention.wo.weight", (dim, dim), 1
        yield f"{prefix}.feed_forward.w1.weight", (hidden, dim), 0
        yield f"{prefix}.feed_forward.w2.weight", (dim, hidden), 1
        yield f"{prefix}.feed_forward.w3.weight", (hidden, dim), 0
        yield f"{prefix}.attention_norm.weight", (dim,), None
        yield f"{prefix}.ffn_norm.weight", (dim,), None
    yield "norm.weight", (dim,), None
    yield "output.weight", (model.vocab_size, dim), 0


def random_ranks(
    model: Model, n_ranks: int, *, dtype: torch.dtype, seed: int, rope_theta: float
) -> list[dict[str, torch.Tensor]]:
    """Draw a model and split it.

    Args:
        model: The sizes.
        n_ranks: Files to split it over; the unsplit model is the same for any number.
        dtype: Element type of every tensor.
        seed: Of the random numbers.
        rope_theta: Base of the rotary frequencies.

    Returns:
        One state dict a rank, under Meta's names.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(n_ranks)]
    for name, shape, split_dim in tensor_shapes(model):
        noise = torch.randn(shape, generator=generator)
        # Norms near one and matrices that keep a vector's length give logits of order one.
        tensor = (1 + 0.1 * noise if split_dim is None else noise / shape[-1] ** 0.5).to(dtype)
        parts = [tensor] * n_ranks if split_dim is None else tensor.chunk(n_ranks, split_dim)
        for rank, part in zip(ranks, parts, strict=True):
            rank[name] = part.clone(memory_format=torch.contiguous_format)
    head_dim = model.dim // model.n_heads
    freqs = rope_theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    for rank in ranks:
        rank["rope.freqs"] = freqs.to(dtype)
    return ranks


def train_tokenizer(n_pieces: int) -> bytes:
    """Train a SentencePiece model as Meta set its trainer up.

    Args:
        n_pieces: Exactly so many, the three special ones and 256 bytes among them.

    Returns:
        The content of a tokenizer.model.

    Raises:
        click.UsageError: If the characters of the text alone are more.
    """
    syllables = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
    made_up = (" ".join(words) for words in product(syllables, repeat=3))
    sentences = [*TEXT.splitlines(), *(word.replace(" ", "") for word in islice(made_up, n_pieces))]
    n_least = 259 + len(set("".join(sentences)) | {"\u2581"}) - 1  # a space becomes U+2581
    if n_pieces < n_least:
        raise click.UsageError(f"{n_pieces} trained pieces are too few, {n_least} the least")
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=content,
        model_type="bpe",
        vocab_size=n_pieces,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return content.getvalue()


def add_infill_pieces(tokenizer_model: bytes) -> bytes:
    """Append the pieces that Code Llama 7B and 13B have behind those of Llama 2.

    A serialized protobuf grows a repeated field by appending: field 1 holds the pieces, and a
    piece has its text in field 1 and its score in field 2.

    Args:
        tokenizer_model: The content of a tokenizer.model.

    Returns:
        The same with 16 pieces more.
    """
    for piece, score in INFILL_PIECES:
        text = piece.encode()
        entry = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        tokenizer_model += b"\x0a" + bytes([len(entry)]) + entry
    return tokenizer_model


def write_checkpoint(
    folder: Path,
    *,
    ranks: list[dict[str, torch.Tensor]],
    params: Mapping[str, object],
    tokenizer_model: bytes | None,
) -> None:
    """Write the files of a checkpoint.

    Args:
        folder: Made if missing.
        ranks: One state dict a rank.
        params: The content of params.json.
        tokenizer_model: The content of tokenizer.model, if there is to be one.

    Raises:
        click.UsageError: If the folder is not empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty")
    for index, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{index:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params) + "\n", encoding="utf-8")
    if tokenizer_model is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer_model)


@click.command(
    context_settings={
        "show_default": True,
        "token_normalize_func": lambda name: name.replace("-", "_"),
    }
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dim", type=click.IntRange(1), default=64, help="Width of the embedding.")
@click.option("--n_layers", type=click.IntRange(1), default=2, help="Transformer layers.")
@click.option("--n_heads", type=click.IntRange(1), default=8, help="Query heads.")
@click.option(
    "--n_kv_heads",
    type=click.IntRange(1),
    default=None,
    help="Key/value heads; --n_heads if absent.",
)
@click.option("--vocab_size", type=click.IntRange(1, 64000), default=512, help="Rows and pieces.")
@click.option("--multiple_of", type=click.IntRange(1), default=32, help="As in params.json.")
@click.option("--ffn_dim_multiplier", type=float, default=1.0, help="As in params.json.")
@click.option("--norm_eps", type=float, default=1e-5, help="As in params.json.")
@click.option("--rope_theta", type=float, default=1e6, help="Base of the rotary frequencies.")
@click.option("--ranks", type=click.IntRange(1, 8), default=1, help="Files consolidated.NN.pth.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    help="Element type of the weights.",
)
@click.option("--seed", type=int, default=0, help="Of the random weights.")
@click.option("--infill", is_flag=True, help="Code Llama's infill pieces, 16 of --vocab_size.")
@click.option("--no_tokenizer", is_flag=True, help="Write no tokenizer.model.")
def main(
    folder: Path,
    *,
    dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int | None,
    vocab_size: int,
    multiple_of: int,
    ffn_dim_multiplier: float,
    norm_eps: float,
    rope_theta: float,
    ranks: int,
    dtype: str,
    seed: int,
    infill: bool,
    no_tokenizer: bool,
) -> None:
    """Make a tiny random checkpoint in the layout of Meta's Code Llama in FOLDER.

    Example: python examples/make_tiny_checkpoint.py tiny-checkpoint --ranks 2 --n_kv_heads 2
    """
    hidden = feed_forward_width(dim, multiple_of, ffn_dim_multiplier)
    model = Model(dim, n_layers, n_heads, n_kv_heads or n_heads, hidden, vocab_size)
    check_split(model, ranks)
    params = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        **({"n_kv_heads": model.n_kv_heads} if model.n_kv_heads != n_heads else {}),
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": ffn_dim_multiplier,
        "norm_eps": norm_eps,
        "rope_theta": int(rope_theta) if rope_theta.is_integer() else rope_theta,
    }
    tokenizer_model = None
    if not no_tokenizer:
        n_trained = vocab_size - len(INFILL_PIECES) if infill else vocab_size
        tokenizer_model = train_tokenizer(n_trained)
        tokenizer_model = add_infill_pieces(tokenizer_model) if infill else tokenizer_model
    write_checkpoint(
        folder,
        ranks=random_ranks(
            model, ranks, dtype=getattr(torch, dtype), seed=seed, rope_theta=rope_theta
        ),
        params=params,
        tokenizer_model=tokenizer_model,
    )
    click.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main()
