"""The folder around the ranks: params.json, the tokenizer, the set of ranks, no files at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile.case import WEIGHTS_ONLY, accepted, many, refused
from tests.faults.hostile.downloads import PAGES, POINTER
from tests.faults.hostile.rank_bytes import (
    N_RECORDS,
    NORM,
    PARAMS,
    QUERY,
    RANK,
    SECOND,
    STATE,
    TINY,
    TOKENIZER,
    edit,
    put,
    rank_file,
)
from tests.faults.hostile.zip_bytes import write_zip, zip_offset
from tests.witness.checkpoints import (
    Shape,
    params_json,
    save_checkpoint,
    split_ranks,
    tokenizer_model,
)


def _replace_by(folder: Path, name: str) -> Path:
    (folder / name).unlink(missing_ok=True)
    return folder / name


def _register_irregular(name: str, options: Sequence[str] = WEIGHTS_ONLY) -> None:
    short = name.split(".", maxsplit=1)[0]

    def register(kind: str, make: Callable[[Path], Any], *facts: str) -> None:
        def build(folder: Path) -> None:
            make(_replace_by(folder, name))

        build.__name__ = f"{short}_is_{kind}"
        refused(name, *facts, options=options)(build)

    register("fifo", os.mkfifo, "regular file")
    register("dev_zero", lambda path: path.symlink_to("/dev/zero"), "regular file")
    register("folder", lambda path: path.mkdir())
    register("dangling_link", lambda path: path.symlink_to("nowhere"), "No such file")
    register("link_to_itself", lambda path: path.symlink_to(path.name), "symbolic links")


if hasattr(os, "mkfifo"):
    _register_irregular(RANK)
    _register_irregular(PARAMS)
    _register_irregular(TOKENIZER, options=())


@refused(PARAMS, "No such file")
def params_missing(folder: Path) -> None:
    (folder / PARAMS).unlink()


_GOOD_PARAMS = params_json(TINY).encode()


def _params(**said: object) -> bytes:
    return params_json(TINY, overrides=said).encode()


@many(
    PARAMS,
    {
        "html": (PAGES["doctype"], "HTML"),
        "lfs-pointer": (POINTER, "Git LFS"),
        "empty": (b"", "empty"),
        "blank": (b" \n", "empty"),
        "cut": (_GOOD_PARAMS[:-10], "JSON"),
        "not-json": (b"dim: 8", "JSON"),
        "not-utf-8": (b"\xff\xfe{\0}\0", "JSON"),
        "list": (b"[8]", "JSON object"),
        "deep": (b"[" * 100_000, "JSON"),
        "key-twice": (_GOOD_PARAMS.replace(b"{", b'{"dim": 9, ', 1), "twice"),
        "long-integer": (_GOOD_PARAMS.replace(b"8", b"8" * 5000, 1), PARAMS),
        "nan": (_GOOD_PARAMS.replace(b"1e-05", b"NaN"), "NaN"),
        "infinite": (_GOOD_PARAMS.replace(b"1e-05", b"1e999"), "norm_eps"),
        "no-dim": (b'{"n_layers": 1}', "dim"),
        "dim-text": (_params(dim="8"), "dim"),
        "dim-true": (_params(dim=True), "dim"),
        "dim-float": (_params(dim=8.0), "dim"),
        "dim-zero": (_params(dim=0), "dim"),
        "dim-negative": (_params(dim=-8), "dim"),
        "dim-null": (_params(dim=None), "dim"),
        "n-kv-heads-zero": (_params(n_kv_heads=0), "n_kv_heads"),
        "n-kv-heads-uneven": (_params(n_heads=4, n_kv_heads=3), "n_kv_heads", "3", "4"),
        "odd-head": (_params(n_heads=8), "8"),
        "one-head-of-2048": (_params(dim=2048, n_heads=1), "2048", "1024"),
        "multiplier-huge": (_params(ffn_dim_multiplier=1e308), "ffn_dim_multiplier"),
        "multiplier-infinite-product": (_params(dim=1 << 24, ffn_dim_multiplier=1.7e308), PARAMS),
        "llama-4": (_params(moe_args={"num_experts": 16}), "moe_args"),
        "mistral": (_params(sliding_window=4096), "sliding_window", "4096", "Mistral"),
        "rope-scaling": (_params(rope_scaling={"factor": 4}), "rope_scaling", "factor"),
        "too-large": (b" " * (1 << 20) + b"{}", "bytes"),
    },
)  # fmt: skip
def params_refused(folder: Path, content: bytes) -> None:
    (folder / PARAMS).write_bytes(content)


@accepted("vocab_size is 301; the embedding's 300 rows are used")
def params_of_another_vocabulary(folder: Path) -> None:
    (folder / PARAMS).write_bytes(_params(vocab_size=301))


@accepted("multiple_of 32 and ffn_dim_multiplier 9.5 give a feed-forward width of 224; the")
def params_of_another_width(folder: Path) -> None:
    (folder / PARAMS).write_bytes(_params(multiple_of=32, ffn_dim_multiplier=9.5))


@many(
    RANK,
    {
        "dim": ({"dim": 16, "n_heads": 4, "multiple_of": 16, "ffn_dim_multiplier": 0.4}, "shape", "(300, 8)", "(300, 16)"),
        "n-layers": ({"n_layers": 2}, "layers.1.attention.wq.weight", "missing"),
        "n-layers-16-million": ({"n_layers": 1 << 24}, "layers.1.attention.wq.weight", "missing"),
        "n-kv-heads": ({"n_kv_heads": 1}, "layers.0.attention.wk.weight", "(8, 8)", "(4, 8)"),
        "n-heads": ({"n_heads": 4}, "rope.freqs", "(2,)", "heads of 4, not of 2"),
    },
    bomb=True,
)  # fmt: skip
def params_contradict_the_rank(folder: Path, said: dict[str, object]) -> None:
    (folder / PARAMS).write_bytes(_params(**said))


def _two_ranks(folder: Path, n_ranks: int = 2) -> None:
    save_checkpoint(folder, TINY, STATE, n_ranks=n_ranks, tokenizer=False)


@accepted()
def two_ranks(folder: Path) -> None:
    _two_ranks(folder)


_FOUR = Shape(dim=16, n_layers=1, n_heads=4, n_kv_heads=4, hidden=16, vocab=300)


def _four_ranks(folder: Path) -> None:
    save_checkpoint(folder, _FOUR, n_ranks=4, tokenizer=False)


@refused("", "consolidated.01.pth", "missing")
def rank_missing_in_the_middle(folder: Path) -> None:
    _four_ranks(folder)
    (folder / SECOND).unlink()


@refused("", "consolidated.00.pth", "missing")
def rank_missing_at_the_front(folder: Path) -> None:
    _four_ranks(folder)
    (folder / RANK).unlink()


@refused(RANK, "4", "3 were found")
def rank_missing_at_the_end(folder: Path) -> None:
    _four_ranks(folder)
    (folder / "consolidated.03.pth").unlink()


@refused(RANK, "1 rank,", "2 were found")
def rank_too_many(folder: Path) -> None:
    shutil.copy(folder / RANK, folder / SECOND)


@refused("", "9", "8")
def nine_ranks(folder: Path) -> None:
    for number in range(1, 9):
        shutil.copy(folder / RANK, folder / f"consolidated.{number:02d}.pth")


@refused(SECOND, "same", RANK)
def rank_copied_over_another(folder: Path) -> None:
    _two_ranks(folder)
    shutil.copy(folder / RANK, folder / SECOND)


@refused(SECOND, "same", RANK)
def rank_copied_and_saved_again(folder: Path) -> None:
    torch.save(split_ranks(STATE, 2)[0], folder / RANK)
    torch.save(split_ranks(STATE, 2)[0], folder / SECOND, pickle_protocol=4)


@refused(SECOND, "same", RANK)
def rank_linked_to_another_without_crcs(folder: Path) -> None:
    members = rank_file(split_ranks(STATE, 2)[0]).members()
    for member in members:
        member.local["crc"] = member.central["crc"] = 0
    put(folder, members)
    (folder / SECOND).symlink_to(RANK)


@accepted()
def rank_names_in_other_digits(folder: Path) -> None:
    """Digits of another script are no rank's number."""
    shutil.copy(folder / RANK, folder / "consolidated.\u0660\u0660.pth")


@refused(SECOND, "truncated")
def second_rank_truncated(folder: Path) -> None:
    _two_ranks(folder)
    edit(folder / SECOND, lambda raw: raw.__delitem__(slice(3000, None)))


@refused(SECOND, "data/0", "CRC-32")
def second_rank_bit_flipped(folder: Path) -> None:
    _two_ranks(folder)
    at = zip_offset(folder / SECOND, "data/0")

    def change(raw: bytearray) -> None:
        raw[at] ^= 0x80

    edit(folder / SECOND, change)


@refused(SECOND, "CRC-32")
def second_rank_unused_copy_bit_flipped(folder: Path) -> None:
    """The last rank's rope.freqs, which nothing is made of."""
    _two_ranks(folder)
    at = zip_offset(folder / SECOND, f"data/{N_RECORDS}")

    def change(raw: bytearray) -> None:
        raw[at] ^= 0x80

    edit(folder / SECOND, change)


@refused(SECOND, NORM, RANK, "element 3")
def norm_differs_between_ranks(folder: Path) -> None:
    second = split_ranks(STATE, 2)[1]
    second[NORM][3] = -second[NORM][3]
    torch.save(split_ranks(STATE, 2)[0], folder / RANK)
    torch.save(second, folder / SECOND)


@refused(SECOND, QUERY, "missing")
def second_rank_lacks_a_tensor(folder: Path) -> None:
    first, second = split_ranks(STATE, 2)
    del second[QUERY]
    torch.save(first, folder / RANK)
    torch.save(second, folder / SECOND)


@refused(SECOND, QUERY, "(8, 8)", "(4, 8)")
def second_rank_is_not_split(folder: Path) -> None:
    first, second = split_ranks(STATE, 2)
    second[QUERY] = STATE[QUERY].clone()
    torch.save(first, folder / RANK)
    torch.save(second, folder / SECOND)


@refused("", "tokenizer.model", "--skip_tokenizer", options=())
def no_tokenizer(folder: Path) -> None:
    """The place where it could be is named, and what to do."""


@refused(TOKENIZER, "301", "300", options=())
def tokenizer_of_another_model(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(tokenizer_model(301))


@many(
    TOKENIZER,
    {
        "html": (PAGES["doctype"], "HTML"),
        "lfs-pointer": (POINTER, "Git LFS"),
        "empty": (b"", "empty"),
        "cut": (tokenizer_model(300)[:1000],),
        "rank": (write_zip(rank_file().members()), "zip"),
        "zeros": (bytes(5000),),
        "huge": (b"\n" * ((8 << 20) + 1), "larger"),
    },
    options=(),
)
def tokenizer_refused(folder: Path, content: bytes) -> None:
    (folder / TOKENIZER).write_bytes(content)
