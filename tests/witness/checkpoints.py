"""Own the checkpoints that tests read and the tensors expected of them; know nothing of the package.

Every name, shape, split and order here is spelled a second time by hand, after Meta's model code and
transformers' `LlamaForCausalLM`: fixtures that borrow the package's table share its mistakes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice, product
from pathlib import Path
from typing import Literal

import torch

Storage = Literal["own", "shared-offset", "flat", "transposed", "strided"]
Rope = Literal["top", "inner"]
Style = Literal["code_llama", "llama2", "llama1"]
State = dict[str, torch.Tensor]

STORAGES: tuple[Storage, ...] = ("own", "shared-offset", "flat", "transposed", "strided")


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()  # as the value of an override, takes the key out of params.json


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes in Meta's spelling; `hidden` is the width of the feed-forward layers."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim


# n_kv_heads squared is not n_heads in GQA, where most converters went wrong.
MHA = Shape(dim=32, n_layers=2, n_heads=4, n_kv_heads=4, hidden=96, vocab=320)
GQA = Shape(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden=176, vocab=320)
WIDE = Shape(dim=128, n_layers=2, n_heads=16, n_kv_heads=8, hidden=352, vocab=320)  # 8 ranks

# The released sizes, params.json and README of meta-llama/codellama and meta-llama/llama.
CODE_LLAMA_7B = Shape(4096, 32, 32, 32, 11008, 32016)
CODE_LLAMA_13B = Shape(5120, 40, 40, 40, 13824, 32016)
CODE_LLAMA_34B = Shape(8192, 48, 64, 8, 22016, 32000)
CODE_LLAMA_70B = Shape(8192, 80, 64, 8, 28672, 32016)


def meta_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Spell the unsplit tensors of a model under Meta's names, in the order of Meta's module."""
    d, kv, hidden, vocab = shape.dim, shape.kv_dim, shape.hidden, shape.vocab
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (vocab, d)}
    for i in range(shape.n_layers):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (d, d),
            f"layers.{i}.attention.wk.weight": (kv, d),
            f"layers.{i}.attention.wv.weight": (kv, d),
            f"layers.{i}.attention.wo.weight": (d, d),
            f"layers.{i}.feed_forward.w1.weight": (hidden, d),
            f"layers.{i}.feed_forward.w2.weight": (d, hidden),
            f"layers.{i}.feed_forward.w3.weight": (hidden, d),
            f"layers.{i}.attention_norm.weight": (d,),
            f"layers.{i}.ffn_norm.weight": (d,),
        }
    return shapes | {"norm.weight": (d,), "output.weight": (vocab, d)}


# --- values ---------------------------------------------------------------------------------------


def random_model(
    shape: Shape,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    *,
    special_values: bool = False,
) -> State:
    """Draw an unsplit model in Meta's names, the same for the same seed.

    Args:
        shape: Its sizes.
        dtype: bfloat16, float16 or float32.
        seed: Of a generator of its own.
        special_values: Uniform bits instead of well-scaled normal values: NaNs of every payload,
            infinities, negative zeros, subnormals. At least one of each kind is in every tensor
            of ten elements or more.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = _random_bits if special_values else _normal_values
    return {name: draw(size, dtype, generator) for name, size in meta_shapes(shape).items()}


def _normal_values(
    size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    values = torch.randn(size, generator=generator)
    # Norms near one and matrices that keep a vector's length, so that logits stay of order one.
    values = 1 + 0.2 * values if len(size) == 1 else values / size[-1] ** 0.5
    return values.to(dtype)


def _random_bits(
    size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    n_bits = 8 * dtype.itemsize
    bits = torch.randint(
        -(2 ** (n_bits - 1)), 2 ** (n_bits - 1), size, generator=generator, dtype=int_dtype(dtype)
    )
    planted = _special_bits(dtype)
    flat = bits.view(-1)
    if flat.numel() >= len(planted):
        where = torch.randperm(flat.numel(), generator=generator)[: len(planted)]
        flat[where] = torch.tensor(planted, dtype=bits.dtype)
    return bits.view(dtype)


def _special_bits(dtype: torch.dtype) -> list[int]:
    n_bits = 8 * dtype.itemsize
    n_fraction = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[dtype]
    infinity = (1 << (n_bits - 1)) - (1 << n_fraction)
    quiet = infinity | 1 << (n_fraction - 1)
    unsigned = [infinity, infinity | 1, infinity | 5, quiet, quiet | 3]  # two signalling NaNs
    signed = [*unsigned[:4], 0]  # their negatives, and -0.0
    return [*unsigned, *(bits - (1 << (n_bits - 1)) for bits in signed)]


def int_dtype(dtype: torch.dtype) -> torch.dtype:
    """Name the integer type of the same width, to look at bits through."""
    return {2: torch.int16, 4: torch.int32}[dtype.itemsize]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare dtype, shape and bits: a NaN equals itself here, and -0.0 is not 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = int_dtype(one.dtype)
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def rope_freqs(shape: Shape, dtype: torch.dtype, theta: float = 10000.0) -> torch.Tensor:
    """Compute the buffer that Meta's module keeps: theta ** (-2i / head_dim), once a pair."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    return (1.0 / theta**exponents).to(dtype)


# --- ranks ----------------------------------------------------------------------------------------

# fairscale's ColumnParallelLinear stores its weight split on dimension 0, RowParallelLinear and
# ParallelEmbedding on dimension 1; norms are copied to every rank.
SPLIT_DIM: dict[str, int | None] = {
    "tok_embeddings": 1,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w2": 1,
    "w3": 0,
    "attention_norm": None,
    "ffn_norm": None,
    "norm": None,
    "output": 0,
}


def split_ranks(state: Mapping[str, torch.Tensor], n_ranks: int) -> list[State]:
    """Split a model over tensor-parallel ranks as Meta's training did; every part is a copy.

    Raises:
        ValueError: If a dimension does not divide by the number of ranks.
    """
    ranks: list[State] = [{} for _ in range(n_ranks)]
    for name, tensor in state.items():
        split_dim = SPLIT_DIM[name.split(".")[-2]]
        parts: Sequence[torch.Tensor] = [tensor] * n_ranks
        if split_dim is not None:
            if tensor.shape[split_dim] % n_ranks:
                raise ValueError(f"{name} {tuple(tensor.shape)} does not divide by {n_ranks} ranks")
            parts = tensor.chunk(n_ranks, split_dim)
        for rank, part in zip(ranks, parts, strict=True):
            rank[name] = part.clone(memory_format=torch.contiguous_format)
    return ranks


def save_checkpoint(
    folder: Path,
    shape: Shape,
    state: Mapping[str, torch.Tensor] | None = None,
    n_ranks: int = 1,
    *,
    storage: Storage = "own",
    rope: Rope | None = "top",
    style: Style = "code_llama",
    params: Mapping[str, object] | None = None,
    tokenizer: bool | bytes = True,
    as_parameters: bool = False,
    pickle_protocol: int = 2,
) -> Path:
    """Write a Meta checkpoint: consolidated.NN.pth, params.json and tokenizer.model.

    Args:
        folder: Made if missing.
        shape: The model's sizes, which params.json tells.
        state: The unsplit model; None is `random_model(shape)`.
        n_ranks: Files to split it over.
        storage: How tensors lie in storages, see `lay_out`.
        rope: Where the rotary buffer is: "top" as in Llama 2, "inner" in each layer as in
            Llama 1 7B, None nowhere.
        style: Whose params.json, see `params_json`.
        params: Overrides of params.json; the value `ABSENT` takes a key out.
        tokenizer: A tokenizer.model of `shape.vocab` pieces, or these bytes, or none.
        as_parameters: Wrap the tensors in `torch.nn.Parameter`, as some training code saves them.
        pickle_protocol: As in `torch.save`.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = random_model(shape) if state is None else state
    for index, rank in enumerate(split_ranks(state, n_ranks)):
        dtype = rank["norm.weight"].dtype
        freqs = rope_freqs(shape, dtype)
        laid_out = lay_out(rank | dict.fromkeys(rope_names(shape, rope), freqs), storage)
        if as_parameters:
            laid_out = {
                name: torch.nn.Parameter(tensor, requires_grad=False)
                for name, tensor in laid_out.items()
            }
        torch.save(
            laid_out, folder / f"consolidated.{index:02d}.pth", pickle_protocol=pickle_protocol
        )
    (folder / "params.json").write_text(params_json(shape, style, params), encoding="utf-8")
    if tokenizer is not False:
        content = tokenizer_model(shape.vocab) if tokenizer is True else tokenizer
        (folder / "tokenizer.model").write_bytes(content)
    return folder


@contextmanager
def sums_computed(*, by_torch: bool) -> Iterator[None]:
    """Let torch.save compute the CRC-32 of each record, or write 0, which means "not computed"."""
    torch.serialization.set_crc32_options(compute_crc32=by_torch)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)


def rope_names(shape: Shape, rope: Rope | None) -> list[str]:
    """List the names under which the released checkpoints keep the rotary buffer."""
    if rope == "top":
        return ["rope.freqs"]
    if rope == "inner":
        return [f"layers.{i}.attention.inner_attention.rope.freqs" for i in range(shape.n_layers)]
    return []


def lay_out(rank: Mapping[str, torch.Tensor], storage: Storage) -> State:
    """Give the tensors of a rank equal ones that lie otherwise in their storages.

    Args:
        rank: Tensors of one dtype.
        storage: "own": one storage each. "flat": all of them one after the other in one storage.
            "shared-offset": the same, but gaps of random bits lie before, between and behind the
            tensors, and tensors of equal bits are one and the same view. "transposed": matrices
            are stored column by column. "strided": matrices are column slices of wider ones, so
            their rows lie apart.
    """
    if storage == "own":
        return {name: tensor.clone() for name, tensor in rank.items()}
    if storage == "transposed":
        return {
            name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor.clone()
            for name, tensor in rank.items()
        }
    if storage == "strided":
        return {
            name: _column_slice(tensor, seed) for seed, (name, tensor) in enumerate(rank.items())
        }
    return _one_storage(rank, with_gaps=storage == "shared-offset")


def _column_slice(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    if tensor.dim() != 2:
        return tensor.clone()
    n_rows, n_columns = tensor.shape
    generator = torch.Generator().manual_seed(seed)
    wider = _random_bits((n_rows, n_columns + 5), tensor.dtype, generator)
    wider[:, 3 : 3 + n_columns] = tensor
    return wider[:, 3 : 3 + n_columns]


def _one_storage(rank: Mapping[str, torch.Tensor], *, with_gaps: bool) -> State:
    starts: dict[str, int] = {}
    seen: dict[tuple[torch.Size, bytes], int] = {}
    cursor = 0
    for index, (name, tensor) in enumerate(rank.items()):
        bits = tensor.contiguous().view(int_dtype(tensor.dtype)).numpy().tobytes()
        key = (tensor.shape, bits)
        if with_gaps and key in seen:
            starts[name] = seen[key]
            continue
        cursor += 1 + index % 7 if with_gaps else 0  # odd gaps: no tensor is aligned to 4 bytes
        starts[name] = seen[key] = cursor
        cursor += tensor.numel()
    dtype = next(iter(rank.values())).dtype
    n_elements = cursor + (9 if with_gaps else 0)
    flat = _random_bits((n_elements,), dtype, torch.Generator().manual_seed(len(rank)))
    for name, tensor in rank.items():
        flat[starts[name] : starts[name] + tensor.numel()] = tensor.reshape(-1)
    return {
        name: flat[starts[name] : starts[name] + tensor.numel()].view(tensor.shape)
        for name, tensor in rank.items()
    }


# --- params.json ----------------------------------------------------------------------------------


def params_json(
    shape: Shape, style: Style = "code_llama", overrides: Mapping[str, object] | None = None
) -> str:
    """Write params.json as one of Meta's releases did: which keys, in which order.

    Args:
        shape: The model's sizes.
        style: "code_llama" has no vocab_size; "llama2" and "llama1" say -1 and have no rope_theta.
        overrides: Values to set or, with `ABSENT`, keys to take out.
    """
    multiple_of, multiplier = feed_forward_rule(shape)
    grouped = {"n_kv_heads": shape.n_kv_heads} if shape.n_kv_heads != shape.n_heads else {}
    if style == "code_llama":
        params: dict[str, object] = {
            "dim": shape.dim,
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            **grouped,
            "multiple_of": multiple_of,
            "ffn_dim_multiplier": multiplier,
            "norm_eps": 1e-5,
            "rope_theta": 1000000,
        }
    else:
        params = {
            "dim": shape.dim,
            "multiple_of": multiple_of,
            **({"ffn_dim_multiplier": multiplier} if multiplier != 1.0 else {}),
            "n_heads": shape.n_heads,
            **grouped,
            "n_layers": shape.n_layers,
            "norm_eps": 1e-6 if style == "llama1" else 1e-5,
            "vocab_size": -1,
        }
    params |= overrides or {}
    text = json.dumps({key: value for key, value in params.items() if value is not ABSENT})
    return text if style == "llama1" else text + "\n"


def feed_forward_rule(shape: Shape) -> tuple[int, float]:
    """Find `multiple_of` and `ffn_dim_multiplier` that make Meta's formula give `shape.hidden`."""
    natural = int(2 * (4 * shape.dim) / 3)
    for multiple_of, multiplier in (
        (256, 1.0),
        (4096, 1.3),
        (shape.hidden, 1.0),
        (shape.hidden, shape.hidden / natural),
    ):
        wanted = int(multiplier * natural)
        if multiple_of * ((wanted + multiple_of - 1) // multiple_of) == shape.hidden:
            return multiple_of, multiplier
    raise ValueError(f"no params.json gives {shape}")


# --- what Hugging Face should get -----------------------------------------------------------------


def half_split_rows(n_heads: int, head_dim: int) -> list[int]:
    """Tell, for each row of Hugging Face's order, which row of Meta's it is.

    Meta turns rows 2j and 2j + 1 of a head together, Hugging Face rows j and j + head_dim / 2.
    """
    rows = []
    for head in range(n_heads):
        first = head * head_dim
        rows += [first + 2 * j for j in range(head_dim // 2)]
        rows += [first + 2 * j + 1 for j in range(head_dim // 2)]
    return rows


def expected_state_dict(state: Mapping[str, torch.Tensor], shape: Shape) -> State:
    """Name and order an unsplit Meta model as `LlamaForCausalLM.state_dict()` does."""
    query_rows = torch.tensor(half_split_rows(shape.n_heads, shape.head_dim))
    key_rows = torch.tensor(half_split_rows(shape.n_kv_heads, shape.head_dim))
    expected = {"model.embed_tokens.weight": state["tok_embeddings.weight"]}
    for i in range(shape.n_layers):
        meta, hf = f"layers.{i}", f"model.layers.{i}"
        query, key = state[f"{meta}.attention.wq.weight"], state[f"{meta}.attention.wk.weight"]
        expected |= {
            f"{hf}.self_attn.q_proj.weight": query[query_rows],
            f"{hf}.self_attn.k_proj.weight": key[key_rows],
            f"{hf}.self_attn.v_proj.weight": state[f"{meta}.attention.wv.weight"],
            f"{hf}.self_attn.o_proj.weight": state[f"{meta}.attention.wo.weight"],
            f"{hf}.mlp.gate_proj.weight": state[f"{meta}.feed_forward.w1.weight"],
            f"{hf}.mlp.up_proj.weight": state[f"{meta}.feed_forward.w3.weight"],
            f"{hf}.mlp.down_proj.weight": state[f"{meta}.feed_forward.w2.weight"],
            f"{hf}.input_layernorm.weight": state[f"{meta}.attention_norm.weight"],
            f"{hf}.post_attention_layernorm.weight": state[f"{meta}.ffn_norm.weight"],
        }
    return expected | {
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["output.weight"],
    }


def read_output(folder: Path) -> State:
    """Read a Hugging Face folder with the safetensors library, by its index where there is one."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {name: load_file(folder / name) for name in sorted(set(weight_map.values()))}
    stored = {name for tensors in files.values() for name in tensors}
    assert stored == set(weight_map), stored ^ set(weight_map)
    return {name: files[file][name] for name, file in weight_map.items()}


# --- tokenizer.model ------------------------------------------------------------------------------

_ALPHABET = (
    "\u2581etaoinsrhldcumfpgwybvkxjqz0123456789()[]{}<>=+-*/_.,:;'\"!?#%&@$^|~`\\"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


@cache
def tokenizer_model(n_pieces: int) -> bytes:
    """Write a SentencePiece BPE model with byte fallback of exactly that many pieces.

    As in Meta's: <unk>, <s>, </s>, 256 bytes, then merged pieces in the order of merging and the
    single characters behind them, the scores falling by one. Every merged piece is made of two
    others.

    Args:
        n_pieces: 300 or more.
    """
    from sentencepiece import sentencepiece_model_pb2 as sp

    if n_pieces < 300:
        raise ValueError(f"{n_pieces} pieces leave too few behind the 256 bytes")
    n_normal = n_pieces - 259
    alphabet = _ALPHABET[: max(20, min(len(_ALPHABET), n_normal // 2))]
    merged = map("".join, chain(product(alphabet, repeat=2), product(alphabet, repeat=3)))
    normal = [*islice(merged, n_normal - len(alphabet)), *alphabet]

    kinds = sp.ModelProto.SentencePiece
    model = sp.ModelProto()
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    model.pieces.add(piece="<s>", score=0.0, type=kinds.CONTROL)
    model.pieces.add(piece="</s>", score=0.0, type=kinds.CONTROL)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    for rank, piece in enumerate(normal):
        model.pieces.add(piece=piece, score=-float(rank), type=kinds.NORMAL)

    spec = model.trainer_spec
    spec.model_type = sp.TrainerSpec.BPE
    spec.vocab_size = n_pieces
    spec.byte_fallback = True
    spec.split_digits = True
    spec.allow_whitespace_only_pieces = True
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    spec.unk_surface = " \u2047 "
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    content: bytes = model.SerializeToString()
    return content
