"""What a job holds: a part for the weights, a part for the tokenizer, and one of both at least."""

import pytest

from codellama_convert import Options, plan_conversion
from tests.witness.checkpoints import GQA, save_checkpoint

ASKED = {"flavor": "instruct", "max_position_embeddings": 777}
RANKS = ["consolidated.00.pth"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("job") / "in", GQA)


def test_a_whole_conversion_has_both_parts_and_they_agree(source):
    """Three attributes were None in three combinations, of which two could never be."""
    job = plan_conversion(source, Options(**ASKED, dtype="float16"))
    assert [rank.path.name for rank in job.ranks] == RANKS
    assert job.weights.checkpoint.recognised.flavor == "instruct"
    assert (job.tokenizer.flavor, job.tokenizer.context) == ("instruct", 777)
    assert job.tokenizer.class_name == "PreTrainedTokenizerFast"
    assert [file.name for file in job.weight_files] == ["model.safetensors"]
    assert job.tensor_bytes == job.weights.plan.tensor_bytes > 0
    assert job.cast == "bfloat16 to float16"


def test_weights_alone_have_no_tokenizer_part(source):
    job = plan_conversion(source, Options(**ASKED, skip_tokenizer=True))
    assert job.tokenizer is None
    assert [rank.path.name for rank in job.ranks] == RANKS
    options = job.fingerprint()["options"]
    assert options.pop("max_shard_size") == 5_000_000_000
    assert options == {
        "dtype": "bfloat16",
        "max_position_embeddings": 777,
        "skip_tokenizer": True,
        "tokenizer_class": None,
        "variant": "instruct",
    }


def test_a_tokenizer_alone_takes_from_the_options_what_no_checkpoint_says(source):
    """It has neither ranks nor weights, and nothing of it has to be tested for None."""
    options = Options(**ASKED, model_size="tokenizer_only", tokenizer_class="LlamaTokenizer")
    job = plan_conversion(source, options)
    assert job.weights is None
    assert (job.ranks, job.weight_files, job.tensor_bytes, job.dropped) == ((), (), 0, ())
    assert (job.cast, job.model_card()) == (None, None)
    assert (job.tokenizer.flavor, job.tokenizer.context) == ("instruct", 777)
    fingerprint = job.fingerprint()
    assert fingerprint.keys() == {"version", "options", "tokenizer.model"}
    assert fingerprint["options"] == {
        "max_position_embeddings": 777,
        "max_shard_size": 5_000_000_000,
        "skip_tokenizer": False,
        "tokenizer_class": "LlamaTokenizer",
        "variant": "instruct",
    }


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_a_part_is_shown_in_a_line_that_can_be_read(source, part):
    shown = repr(getattr(plan_conversion(source, Options()), part))
    assert shown.startswith(f"{part.title()}Job(")
    assert len(shown) < 200
    assert "\n" not in shown
