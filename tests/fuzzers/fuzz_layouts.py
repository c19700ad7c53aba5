"""Own random layouts of tensors, interrupted and resumed."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from codellama_convert.convert.run import convert_checkpoint, run
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.pickle_reader import _Machine
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Options, plan_conversion
from tests.faults.resumes import replace_ranks, spoiled_records, stop_and_damage
from tests.fuzzers.fuzz_pickles import fuzz_pickles
from tests.fuzzers.running import METADATA, MODEL_FILE, contiguous, scratch_folder
from tests.outputs import content, flip_bit, loads
from tests.witness.checkpoints import (
    STORAGES,
    Shape,
    State,
    expected_state_dict,
    random_model,
    read_output,
    same_bits,
    save_checkpoint,
    sums_computed,
)


@dataclass(frozen=True)
class Layout:
    """A model, how it is stored, how it is to be converted, and when that is interrupted."""

    shape: Shape
    n_ranks: int
    dtype: torch.dtype
    seed: int
    how: dict[str, Any]
    with_crc: bool
    options: Options
    stops: list[int]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Draw a model of one to eight ranks."""
    n_ranks = draw(st.integers(1, 8))
    n_kv_heads = n_ranks * draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 4))
    shape = Shape(
        dim=n_heads * head_dim,
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden=n_ranks * draw(st.integers(1, 9)),
        vocab=n_ranks * draw(st.integers(1, 40)),
    )
    tile_bytes = draw(st.one_of(st.integers(1, 4096), st.integers(1, 1 << 20)))
    max_shard_bytes = draw(st.one_of(st.integers(1, 1 << 14), st.integers(1, 1 << 24)))
    return Layout(
        shape,
        n_ranks,
        draw(st.sampled_from((torch.bfloat16, torch.float16, torch.float32))),
        draw(st.integers(0, 1 << 30)),
        {
            "storage": draw(st.sampled_from(STORAGES)),
            "rope": draw(st.sampled_from(("top", "inner", None))),
            "pickle_protocol": draw(st.integers(2, 5)),
        },
        draw(st.booleans()),
        Options(
            skip_tokenizer=True,
            tile_bytes=tile_bytes,
            max_shard_bytes=max_shard_bytes,
            workers=draw(st.integers(1, 3)),
            io_mode=draw(st.sampled_from(("auto", "buffered"))),
        ),
        draw(st.lists(st.integers(0, 60), min_size=1, max_size=3)),
    )


def check_layout(layout: Layout) -> None:
    """Convert, and compare every bit with the oracle's, and every file with the library's."""
    state = random_model(layout.shape, layout.dtype, layout.seed, special_values=True)
    expected = expected_state_dict(state, layout.shape)
    with scratch_folder() as scratch:
        folder, out = scratch / "in", scratch / "out"
        _save(folder, layout, state)
        convert_checkpoint(folder, out, options=layout.options)
        found = read_output(out)
        assert sorted(found) == sorted(expected)
        for name, tensor in expected.items():
            assert same_bits(found[name], tensor), name
        index = out / f"{MODEL_FILE}.index.json"
        weight_map = (
            json.loads(index.read_text())["weight_map"]
            if index.exists()
            else dict.fromkeys(expected, MODEL_FILE)
        )
        for file in set(weight_map.values()):
            part = {name: expected[name] for name, place in weight_map.items() if place == file}
            assert (out / file).read_bytes() == save(contiguous(part), metadata=METADATA), file
        check_resumes(layout, scratch, content(out))


def _save(folder: Path, layout: Layout, state: State) -> None:
    with sums_computed(by_torch=layout.with_crc):
        save_checkpoint(folder, layout.shape, state, layout.n_ranks, tokenizer=False, **layout.how)


def check_resumes(layout: Layout, scratch: Path, expected: dict[str, bytes]) -> None:
    """Stop it again and again, damage what is staged, then the source too, and let it finish.

    Args:
        layout: What to convert.
        scratch: Holds the checkpoint.
        expected: What an uninterrupted run makes of it.
    """
    folder, rng = scratch / "in", random.Random(layout.seed)
    for is_changed in (False, True):
        out = scratch / f"resumed {is_changed}"
        kept = stop_and_damage(plan_conversion(folder, layout.options), out, layout.stops, rng)
        if kept is None:
            assert content(out) == expected
        elif not is_changed:
            run(plan_conversion(folder, layout.options), out)
            assert content(out) == expected
            assert list(kept.problems()) == []
        elif layout.with_crc:
            _check_a_lost_bit(layout, folder, out, expected, rng)
        else:
            _check_another_model(layout, scratch, out)


def _check_a_lost_bit(
    layout: Layout, folder: Path, out: Path, expected: dict[str, bytes], rng: random.Random
) -> None:
    """Kept files were made of what the bit was; from what it is now, nothing may go out."""
    rank = rng.choice(sorted(folder.glob("*.pth")))
    storage = rng.choice(list(read_rank(rank).storages.values()))
    flip_bit(rank, storage.offset + rng.randrange(storage.n_bytes))
    try:
        run(plan_conversion(folder, layout.options), out)
    except CheckpointError:
        assert not loads(out)
    else:
        assert content(out) == expected


def _check_another_model(layout: Layout, scratch: Path, out: Path) -> None:
    """Without sums nothing but the bytes tells another model of the same size and time."""
    state = random_model(layout.shape, layout.dtype, layout.seed + 1, special_values=True)
    _save(scratch / "other", layout, state)
    convert_checkpoint(scratch / "other", scratch / "other out", options=layout.options)
    replace_ranks(scratch / "in", scratch / "other")
    run(plan_conversion(scratch / "in", layout.options), out)
    assert content(out) == content(scratch / "other out")


def fuzz_layouts(n_examples: int, *, shrink: bool = True) -> None:
    """Check random layouts; of one that fails a smaller one is looked for, if wanted."""
    run = given(layouts())(check_layout)
    quiet = settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
    quiet(run)()


def planted_in_pickles(n_mutants: int = 150) -> Counter[str]:
    """Convert forged pickles with a check of the pickle machine left out: "crash" is right."""
    with (
        mock.patch.object(_Machine, "_pop", lambda machine: machine._stack.pop()),
        redirect_stderr(io.StringIO()),
    ):
        tally = fuzz_pickles(n_mutants)
    return Counter(how.partition(":")[0] for how in tally.elements())


def rows_not_reordered() -> AbstractContextManager[object]:
    """Plant a mistake: rotary rows are left as Meta has them."""
    return mock.patch(
        "codellama_convert.convert.transfer.to_half_split", lambda rows, head_dim: rows
    )


def kept_files_not_compared() -> AbstractContextManager[object]:
    """Plant a mistake: any record fits, and a rank without sums is still what it was."""
    return mock.patch.object(TensorReader, "confirms", return_value=True)


PLANTED_IN_LAYOUTS = {
    "rows not reordered": rows_not_reordered,
    "records of all that was read so far": spoiled_records,
    "kept files not compared with the source": kept_files_not_compared,
}


def planted_in_layouts(
    plant: Callable[[], AbstractContextManager[object]], n_examples: int = 40
) -> Counter[str]:
    """Check random layouts with a mistake in the program: "wrong" is right."""
    with plant():
        try:
            fuzz_layouts(n_examples, shrink=False)
        except AssertionError:
            return Counter(wrong=1)
    return Counter(exact=n_examples)
