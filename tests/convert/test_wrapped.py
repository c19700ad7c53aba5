"""State dicts as trainers and compilers save them: in a dict, with a prefix, beside buffers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from codellama_convert import Options, convert_checkpoint, plan_conversion
from codellama_convert.errors import CheckpointError, LayoutError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.meta.state_dict import find_state_dict
from tests.convert.bits import assert_same_bits
from tests.convert.noted import assert_converted_with_note, rotary_buffer, write_ranks
from tests.outputs import stop_after_files
from tests.refusals import refused
from tests.witness.checkpoints import (
    GQA,
    MHA,
    expected_state_dict,
    random_model,
    read_output,
    split_ranks,
)

STATE = random_model(MHA)
EXPECTED = expected_state_dict(STATE, MHA)
LEARNT = torch.ones(32, 32)


def trainer_state() -> dict[str, object]:
    """What a training loop saves beside the weights, with the optimizer's own tensors."""
    states = {n: {"step": torch.tensor(9.0), "exp_avg": LEARNT.clone()} for n in range(3)}
    return {
        "optimizer": {"state": states, "param_groups": [{"lr": 1e-4, "params": [0, 1, 2]}]},
        "scheduler": {"_step_count": 9, "_last_lr": [1e-4], "last_epoch": 8},
        "model_args": {"dim": 32, "n_layers": 2, "multiple_of": 32},
        "rng_state": torch.get_rng_state(),
        "iter_num": 9,
        "best_val_loss": torch.tensor(1.5),
        "epoch": None,
        "run": "a\nname",
    }


@pytest.mark.parametrize("key", ["model", "state_dict", "module", "model_state_dict"])
@pytest.mark.parametrize("beside", [{}, {"iter_num": 5, "best_val_loss": 1.5}, trainer_state()])
def test_a_dict_of_tensors_in_a_dict_is_found(
    tmp_path: Path, key: str, beside: dict[str, object]
) -> None:
    """It was called a nested dict, and Meta's own files were asked for."""
    source = write_ranks(tmp_path / "in", [{**beside, key: STATE | rotary_buffer()}])
    passed_over = [f"'{name}'" for name in list(beside)[:6]]
    assert_converted_with_note(
        source, tmp_path / "out", EXPECTED, f"tensors lie under '{key}'", *passed_over
    )


PLAIN_STATE: dict[str, object] = {
    "counter": Counter({30: 1}),
    "loss_at": {0.5: 1.5},
    "fp8": torch.ones(4, 4).to(torch.float8_e4m3fn),
    "fp8_state": {"amax": torch.ones(4, 4).to(torch.float8_e4m3fn)},
    "generator": {"state": 1 << 127, "inc": -(1 << 100)},
    "seen": {1, 2},
    "frozen": frozenset({"a"}),
    "bytes": b"state",
    "buffer": bytearray(b"state"),
    "size": torch.Size([1]),
    "dtype": torch.bfloat16,
    "rng": torch.ones(3, 3),
}


@pytest.mark.parametrize("key", PLAIN_STATE)
@pytest.mark.parametrize("where", ["beside", "in the optimizer"])
def test_plain_state_of_a_trainer_is_passed_over(tmp_path: Path, key: str, where: str) -> None:
    """It was called damaged, malicious or nested, and Meta's own files were asked for."""
    state = {key: PLAIN_STATE[key]}
    beside = state if where == "beside" else {"optimizer": {"state": state}}
    source = write_ranks(tmp_path / "in", [{"model": STATE, **beside}])
    note = f"tensors lie under 'model'; ignored: '{next(iter(beside))}'"
    assert_converted_with_note(source, tmp_path / "out", EXPECTED, note)


class Settings:
    """Stands for a class of a training script."""


def test_an_object_of_a_trainer_beside_the_model_is_refused_by_its_name(tmp_path: Path) -> None:
    """It was said to be malicious, without a word of what it is, where, and what to do."""
    source = write_ranks(tmp_path / "in", [{"model": STATE, "settings": Settings()}])
    facts = ("consolidated.00.pth", "test_wrapped.Settings' after 'settings'", "a trainer's file")
    with refused(CheckpointError, *facts, "save the model's state dict alone"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_a_model_in_fp8_is_refused_for_it(tmp_path: Path, *, wrapped: bool) -> None:
    state = {n: t if t.ndim == 1 else t.to(torch.float8_e4m3fn) for n, t in STATE.items()}
    source = write_ranks(tmp_path / "in", [{"model": state} if wrapped else state])
    with refused(CheckpointError, "tok_embeddings.weight", "float8_e4m3fn", "quantised weights"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        ({"model": {"state_dict": STATE}}, "lie under 'model.state_dict'"),
        (
            {"app": {"model": STATE, "optim": trainer_state()["optimizer"]}, "epoch": 1},
            "lie under 'app.model'; ignored: 'app.optim', 'epoch'",
        ),
        ({"a": {"b": {0: STATE}}}, "lie under 'a.b.0'"),
    ],
)
def test_dicts_around_the_dict_of_tensors_are_taken_off_too(
    tmp_path: Path, saved: dict[str, object], note: str
) -> None:
    """PyTorch's tutorial on distributed checkpoints has "app" around "model" and "optim"."""
    source = write_ranks(tmp_path / "in", [saved])
    assert_converted_with_note(source, tmp_path / "out", EXPECTED, note)


def test_what_is_passed_over_is_never_looked_at(tmp_path: Path) -> None:
    """Not even a dtype that no weight may have, and not the bytes of an optimizer's tensors."""
    others = {"optimizer": {"state": {0: {"mask": torch.ones(4, 4, dtype=torch.bool)}}}}
    torch.save({"model": STATE, **others}, tmp_path / "rank.pth")
    rank = read_rank(tmp_path / "rank.pth", choose=find_state_dict)
    assert list(rank.tensors) == list(STATE)
    assert len(rank.storages) == len(STATE)


PREFIXES = ["_orig_mod.", "module.", "model.", "llma.", "_fsdp_wrapped_module.", "a.b.c."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_a_prefix_of_every_name_is_taken_off(tmp_path: Path, prefix: str, *, wrapped: bool) -> None:
    """A compiled or parallel model was saved with its wrapper's name before every tensor's."""
    state: dict[str, object] = {prefix + n: t for n, t in (STATE | rotary_buffer()).items()}
    source = write_ranks(tmp_path / "in", [{"model": state} if wrapped else state])
    facts = ("every tensor's name begins with", repr(prefix))
    assert_converted_with_note(source, tmp_path / "out", EXPECTED, *facts)


def test_ranks_may_be_wrapped_and_prefixed_too(tmp_path: Path) -> None:
    state = random_model(GQA)
    ranks = [
        {"model": {f"llma.{name}": tensor for name, tensor in rank.items()}}
        for rank in split_ranks(state, 2)
    ]
    source = write_ranks(tmp_path / "in", ranks, GQA)
    expected = expected_state_dict(state, GQA)
    assert_converted_with_note(source, tmp_path / "out", expected, "begins with 'llma.'")


@pytest.mark.parametrize("left", ["tok_embeddings.weight", "norm.weight", "layers.1.attention.wq.weight"])  # fmt: skip
def test_a_prefix_of_some_names_only_is_refused(tmp_path: Path, left: str) -> None:
    mixed = {n if n == left else f"module.{n}": t for n, t in STATE.items()}
    source = write_ranks(tmp_path / "in", [mixed])
    facts = ("consolidated.00.pth", "some tensors' names begin with 'module.'", repr(left), "alone")
    with refused(LayoutError, *facts):
        convert_checkpoint(source, tmp_path / "out")


WRAPPERS = ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("where", [r"^layers\.\d+\.", r"^layers\.\d+\.attention\.", r"^\w+\."])
@pytest.mark.parametrize("prefix", ["", "_fsdp_wrapped_module."])
def test_wrappers_inside_the_names_are_taken_off(
    tmp_path: Path, wrapper: str, where: str, prefix: str
) -> None:
    """Each block was wrapped by itself, and the file was said to be of another model."""
    renamed = {re.sub(where, rf"\g<0>{wrapper}", name): t for name, t in STATE.items()}
    assert set(renamed) != set(STATE)
    source = write_ranks(tmp_path / "in", [{prefix + name: t for name, t in renamed.items()}])
    facts = ("from the names of tensors", repr(wrapper), "removed")
    assert_converted_with_note(source, tmp_path / "out", EXPECTED, *facts)


def test_a_wrapper_inside_a_name_that_is_there_without_it_too_is_refused(tmp_path: Path) -> None:
    query = "layers.0.attention.wq.weight"
    wrapped = "layers.0._orig_mod.attention.wq.weight"
    source = write_ranks(tmp_path / "in", [{wrapped: LEARNT, **STATE}])
    with refused(LayoutError, "consolidated.00.pth", "both", repr(wrapped), repr(query)):
        convert_checkpoint(source, tmp_path / "out")


def test_an_unknown_word_inside_a_name_is_no_wrapper(tmp_path: Path) -> None:
    renamed = {name.replace("layers.0.", "layers.0._my_module."): t for name, t in STATE.items()}
    source = write_ranks(tmp_path / "in", [renamed])
    with refused(LayoutError, "'layers.0.attention.wq.weight' is missing"):
        convert_checkpoint(source, tmp_path / "out")


def test_the_tensors_of_another_part_beside_the_model_are_refused(tmp_path: Path) -> None:
    beside = {"vision.weight": LEARNT} | {f"llm.{n}": t for n, t in STATE.items()}
    source = write_ranks(tmp_path / "in", [beside])
    with refused(LayoutError, "begin with 'llm.'", "'vision.weight'"):
        convert_checkpoint(source, tmp_path / "out")


def test_two_dicts_of_tensors_are_refused(tmp_path: Path) -> None:
    """A moving average beside the model: which one is meant, only its maker knows."""
    source = write_ranks(tmp_path / "in", [{"model": STATE, "ema": STATE}])
    facts = ("consolidated.00.pth", "2 dicts of tensors", "'model', 'ema'", "file of its own")
    with refused(LayoutError, *facts):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("saved", "facts"),
    [
        ({**STATE, "model": STATE}, ("'model'", "nested dict")),
        ({**STATE, "step": 7}, ("'step'", "int")),
        ({"model": {**STATE, "step": 7}}, ("'step'", "int")),
        ({"model": {**STATE, 3: LEARNT}}, ("dict key 3", "not a tensor's name")),
        ({3: LEARNT, **STATE}, ("dict key 3", "not a tensor's name")),
        ({"a": LEARNT, "stats": {"b": LEARNT}}, ("'stats'", "nested dict")),
        ({**STATE, "rng": LEARNT, "other": {"b": LEARNT}}, ("'other'", "nested dict")),
        ({**STATE, "seen": {1, 2}}, ("'seen'", "a set")),
        ({**STATE, "state": b"a"}, ("'state'", "bytes")),
        ({**STATE, "dtype": torch.bfloat16}, ("'dtype'", "the name torch.bfloat16")),
        ({"a": {"b": {"c": {"model": STATE}}}}, ("'a'", "nested dict")),
        ({"app": {"model": {"a": LEARNT}}}, ("'app'", "nested dict")),
        ({"app": {"a": STATE, "b": STATE}}, ("2 dicts of tensors", "'app.a', 'app.b'")),
        ({"a": {"model": STATE}, "b": {"model": STATE}}, ("'a.model', 'b.model'", "of its own")),
        ({"epoch": 3, "model": {}}, ("'epoch'", "int")),
        ({"optimizer": {"state": {0: {"exp_avg": LEARNT}}}}, ("'optimizer'", "nested dict")),
    ],
)
def test_what_is_no_single_dict_of_tensors_stays_refused(
    tmp_path: Path, saved: object, facts: tuple[str, ...]
) -> None:
    torch.save(saved, tmp_path / "rank.pth")
    with refused(CheckpointError, "rank.pth", *facts):
        read_rank(tmp_path / "rank.pth", choose=find_state_dict)


BUFFERS = {
    "freqs_cos": {"freqs_cos": torch.ones(16, 4), "freqs_sin": torch.ones(16, 4)},
    "freqs_cis": {"freqs_cis": torch.view_as_complex(torch.ones(16, 4, 2))},
    "inv_freq": {"layers.0.attention.rotary_emb.inv_freq": torch.ones(4)},
    "mask": {"layers.1.attention.mask": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
    "cache_k": {"layers.0.attention.cache_k": torch.ones(1, 8, 4, 8)},
    "k_cache": {"layers.0.attention.kv_cache.k_cache": torch.ones(1, 4, 8, 8)},
}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_buffers_among_the_weights_are_left_out(tmp_path: Path, kind: str, prefix: str) -> None:
    """A reimplementation registers what Hugging Face computes, in dtypes that no weight may have."""
    saved = {prefix + name: tensor for name, tensor in (STATE | BUFFERS[kind]).items()}
    source = write_ranks(tmp_path / "in", [saved])
    assert_converted_with_note(source, tmp_path / "out", EXPECTED, "left out", *BUFFERS[kind])
    report = convert_checkpoint(source, tmp_path / "again")
    assert report.dropped == tuple(BUFFERS[kind])


@pytest.mark.parametrize("kind", [kind for kind in BUFFERS if kind != "mask"])
def test_a_buffer_of_other_heads_is_no_buffer_of_this_model(tmp_path: Path, kind: str) -> None:
    """With a wrong n_heads the rows were reordered wrongly, though the buffer showed the right one."""
    saved = STATE | BUFFERS[kind]
    source = write_ranks(tmp_path / "in", [saved], params={"n_heads": 2})
    with refused(LayoutError, next(iter(BUFFERS[kind])), "heads of 8, not of 16"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["freqs_tan", "layers.0.attention.cache_q", "mask.weight"])
def test_a_tensor_that_is_no_known_buffer_is_refused(tmp_path: Path, name: str) -> None:
    source = write_ranks(tmp_path / "in", [STATE | {name: torch.ones(4, dtype=torch.bfloat16)}])
    with refused(LayoutError, repr(name), "(4,)", "does not belong to a Llama model"):
        convert_checkpoint(source, tmp_path / "out")


def test_an_interrupted_conversion_of_one_is_resumed(tmp_path: Path) -> None:
    saved = {f"module.{name}": tensor for name, tensor in STATE.items()}
    source = write_ranks(tmp_path / "in", [{"model": saved, "optimizer": trainer_state()}])
    options = Options(max_shard_bytes=20_000)
    stop_after_files(plan_conversion(source, options), tmp_path / "out", 2)
    report = convert_checkpoint(source, tmp_path / "out", options=options)
    assert report.kept_bytes
    assert_same_bits(read_output(tmp_path / "out"), EXPECTED)
