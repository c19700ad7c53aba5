"""The weights of Llama 3: split by rows, tied, in up to 16 ranks, and what config.json says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from codellama_convert import (
    ConversionReport,
    Options,
    convert_checkpoint,
    plan_conversion,
    verify_output,
)
from codellama_convert.cli.commands import main
from codellama_convert.errors import ConfigError, LayoutError
from tests.convert.bits import assert_same_bits
from tests.refusals import refused
from tests.witness.checkpoints import Shape, State, random_model, read_output, same_bits
from tests.witness.llama3_ranks import (
    EMBEDDING,
    HEAD,
    HEADS_OF_64,
    HEADS_OF_128,
    SIXTEEN,
    Tied,
    expected_of_llama_3,
    llama_3_ranks,
    save_llama_3,
)

ALONE = Options(skip_tokenizer=True)
KEY = "layers.1.attention.wk.weight"


def converted(source: Path, options: Options = ALONE) -> tuple[ConversionReport, Path]:
    """Convert beside the source, verify both ways, and give the output."""
    output = source.with_name(f"{source.name}-hf")
    report = convert_checkpoint(source, output, options=options)
    assert verify_output(output, plan_conversion(source, options)).problems == ()
    assert verify_output(output).problems == ()
    return report, output


def config_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "config.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("shape", "n_ranks", "tied"),
    [
        (HEADS_OF_64, 1, None),
        (HEADS_OF_64, 1, "view"),
        (HEADS_OF_64, 1, "copy"),
        (HEADS_OF_128, 2, None),
        (HEADS_OF_128, 2, "view"),
        (SIXTEEN, 8, None),
        (SIXTEEN, 8, "copy"),
        (SIXTEEN, 16, None),
    ],
    ids=str,
)
def test_every_rank_count_and_head_gives_the_whole_tensors(
    tmp_path: Path, shape: Shape, n_ranks: int, tied: Tied | None
) -> None:
    """Ranks that split the embedding by its rows were refused."""
    state = random_model(shape, special_values=True)
    if tied is not None:
        state |= {HEAD: state[EMBEDDING]}
    source = save_llama_3(tmp_path / "in", shape, state, n_ranks, tied=tied)
    report, output = converted(source)
    assert_same_bits(read_output(output), expected_of_llama_3(state, shape, tied=tied is not None))
    said = config_of(output)
    assert said["tie_word_embeddings"] is (tied is not None)
    assert said["num_key_value_heads"] == shape.n_kv_heads
    assert any("16 ranks hold 8 key and value heads" in one for one in report.notes) is (
        n_ranks == 16
    )


def test_an_embedding_that_is_joined_on_the_wrong_side_has_other_bits(tmp_path: Path) -> None:
    """The negative control of the test above: both joints have the same number of elements."""
    state = random_model(HEADS_OF_128)
    ranks = llama_3_ranks(state, 2, HEADS_OF_128)
    wrong = torch.cat([rank[EMBEDDING] for rank in ranks], 1).view(HEADS_OF_128.vocab, -1)
    assert wrong.shape == state[EMBEDDING].shape
    assert not same_bits(wrong, state[EMBEDDING])


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    """Of a tied model that was trained further with a head: one bit is enough."""
    state: State = random_model(HEADS_OF_64)
    head = state[EMBEDDING].clone()
    head[-1, -1] += 1
    state |= {HEAD: head}
    _, output = converted(save_llama_3(tmp_path / "in", HEADS_OF_64, state))
    assert same_bits(read_output(output)["lm_head.weight"], head)
    assert config_of(output)["tie_word_embeddings"] is False


@pytest.mark.parametrize("name", [KEY, "layers.0.attention.wv.weight"])
def test_heads_that_differ_in_a_pair_of_ranks_are_all_kept(tmp_path: Path, name: str) -> None:
    state = random_model(SIXTEEN)
    source = save_llama_3(tmp_path / "in", SIXTEEN, state, 16)
    path = source / "consolidated.05.pth"
    rank = torch.load(path, weights_only=True)
    rank[name][-1, -1] += 1
    torch.save(rank, path)
    report, output = converted(source)
    assert any(f"{name!r} is not the same in pairs of ranks" in one for one in report.notes)
    assert config_of(output)["num_key_value_heads"] == 16
    written = read_output(output)
    for projection in ("k_proj", "v_proj"):
        assert written[f"model.layers.1.self_attn.{projection}.weight"].shape == (1024, 1024)


def test_a_params_json_that_somebody_corrected_to_8_heads_is_the_same_model(tmp_path: Path) -> None:
    """The hub's discussion asks for it; the ranks hold 16 all the same."""
    state = random_model(SIXTEEN)
    source = save_llama_3(tmp_path / "in", SIXTEEN, state, 16, params={"n_kv_heads": 8})
    _, output = converted(source)
    assert_same_bits(read_output(output), expected_of_llama_3(state, SIXTEEN))
    assert config_of(output)["num_key_value_heads"] == 8


def test_half_heads_are_refused(tmp_path: Path) -> None:
    """Read as 8 heads that 16 ranks share, each rank would have half a head."""
    source = save_llama_3(tmp_path / "in", SIXTEEN, n_ranks=16, params={"n_kv_heads": 8})
    for path in source.glob("*.pth"):
        rank = torch.load(path, weights_only=True)
        rank |= {name: t[:32].clone() for name, t in rank.items() if name.endswith("wk.weight")}
        torch.save(rank, path)
    with refused(LayoutError, "8 key and value heads", "16 ranks"):
        plan_conversion(source, ALONE)


def test_config_json_has_the_scaling_in_the_spelling_of_both_versions(tmp_path: Path) -> None:
    source = save_llama_3(tmp_path / "Llama3.2-tiny", HEADS_OF_64)
    _, output = converted(source)
    said = config_of(output)
    assert said["rope_scaling"] == {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    assert (said["rope_theta"], said["max_position_embeddings"]) == (500000.0, 131072)
    assert said["transformers_version"] == "4.43.0"
    assert "rope_parameters" not in said


def test_the_factor_that_is_asked_for_is_written_recorded_and_verified(tmp_path: Path) -> None:
    source = save_llama_3(tmp_path / "in", HEADS_OF_64)
    _, output = converted(source, Options(skip_tokenizer=True, rope_scaling_factor=32))
    assert config_of(output)["rope_scaling"]["factor"] == 32
    record = json.loads((output / "conversion.json").read_text(encoding="utf-8"))
    assert record["options"]["rope_scaling_factor"] == 32
    other = plan_conversion(source, Options(skip_tokenizer=True, rope_scaling_factor=8))
    problems = verify_output(output, other).problems
    # Both dicts were printed, of which one key of five differs.
    assert "config.json: rope_scaling: factor is 32.0, expected 8.0" in problems
    assert not any("high_freq_factor" in one for one in problems)
    (output / "conversion.json").unlink()
    assert verify_output(output, plan_conversion(source, ALONE)).problems == ()


def test_the_command_compares_the_factor_with_the_record_too(tmp_path: Path) -> None:
    source = save_llama_3(tmp_path / "in", HEADS_OF_64)
    _, output = converted(source, Options(skip_tokenizer=True, rope_scaling_factor=32))
    for folders in ([str(output)], [str(source), str(output)]):
        command = ["verify", *folders, "--rope_scaling_factor"]
        same = CliRunner().invoke(main, [*command, "32"])
        assert same.exit_code == 0, same.output
        other = CliRunner().invoke(main, [*command, "8"])
        assert other.exit_code == 1
        assert "conversion.json: options: rope_scaling_factor" in other.stdout


def test_llama_3_itself_scales_nothing(tmp_path: Path) -> None:
    source = save_llama_3(tmp_path / "in", HEADS_OF_128, n_ranks=2, scaled=False)
    _, output = converted(source)
    said = config_of(output)
    assert (said["rope_scaling"], said["max_position_embeddings"]) == (None, 8192)
    record = json.loads((output / "conversion.json").read_text(encoding="utf-8"))
    assert "rope_scaling_factor" not in record["options"]


def test_a_theta_that_is_not_said_is_that_of_the_code_that_the_model_is_for(tmp_path: Path) -> None:
    """Llama 3's code takes 500000 where params.json says nothing, the older one 10000."""
    source = save_llama_3(tmp_path / "in", HEADS_OF_64, params={"rope_theta": None})
    assert plan_conversion(source, ALONE).weights is not None
    _, output = converted(source)
    assert config_of(output)["rope_theta"] == 500000.0
    doubtful = save_llama_3(
        tmp_path / "doubtful", HEADS_OF_128, n_ranks=2, scaled=False, params={"rope_theta": None}
    )
    with refused(ConfigError, "params.json", "no 'rope_theta'", "10000", "500000", "write the"):
        plan_conversion(doubtful, ALONE)
