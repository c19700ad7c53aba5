"""`verify` uses every option that it accepts, or refuses it; none is accepted and ignored."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.cli.commands import main
from codellama_convert.errors import ConfigError
from codellama_convert.model.asked import Asked
from codellama_convert.tensors import FLOAT16
from tests.witness.checkpoints import GQA, save_checkpoint, tokenizer_model

RECORD = "conversion.json"
# What is no matter of the comparison: where the two sides are, and how the result is printed.
FRAME = {"weights_only", "input_dir", "output_dir", "quiet", "as_json"}
# What the conversion was asked for: the words that say so, and others.
ASKED = {
    "variant": (["--variant", "base"], ["--variant", "chat"]),
    "dtype": (["--dtype", "fp16"], ["--dtype", "float32"]),
    "max_shard_size": (["--max_shard_size", "60KB"], ["--max_shard_size", "5GB"]),
    "max_position_embeddings": (
        ["--max_position_embeddings", "77"],
        ["--max_position_embeddings", "4096"],
    ),
    "tokenizer_class": (
        ["--tokenizer_class", "LlamaTokenizer"],
        ["--tokenizer_class", "CodeLlamaTokenizer"],
    ),
    "skip_tokenizer": ([], ["--skip_tokenizer"]),
}
# How the source is found and read: words that change nothing, and others, with what they lead to.
SOURCE = {
    "model_size": (["--model_size", "13B"], ["--model_size", "13Bf"], "variant"),
    "tokenizer_model": (
        ["--tokenizer_model", "in-Instruct/tokenizer.model"],
        ["--tokenizer_model", "other.model"],
        "tokenizer.model differs from the source's",
    ),
    "checksums": (["--checksums", "off"], ["--checksums", "strict"], "no checklist.chk names"),
    "max_ram": (["--max_ram", "1MB"], ["--max_ram", "100B"], "--max_ram 100 bytes is too small"),
}
# How both sides are read.
READING = {"io_mode": ["--io", "buffered"], "workers": ["--workers", "3"]}

# Of ranks alone, and refused here: tests/cli/ranks/test_verify_ranks.py.
OF_RANKS = {"ranks", "torch_layout", "no_rope_freqs", "vocab_rows"}
# Of Llama 3 alone, which this model is not: tests/convert/llama3/test_weights.py.
OF_LLAMA_3 = {"rope_scaling_factor"}

# Compared where a model scales its rotary frequencies: tests/convert/llama3/test_weights.py.
OF_LLAMA_3 = {"rope_scaling_factor"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose name says Instruct, converted otherwise in every way that can be asked for."""
    folder = tmp_path_factory.mktemp("options")
    source = save_checkpoint(folder / "in-Instruct", GQA, n_ranks=2)
    (source / "checklist.chk").write_text(f"{'0' * 32}  consolidated.00.pth\n")
    (folder / "other.model").write_bytes(other_tokenizer())
    words = [word for said, _ in ASKED.values() for word in said]
    converted = CliRunner().invoke(
        main, ["--input_dir", str(source), "--output_dir", str(folder / "out"), *words]
    )
    assert converted.exit_code == 0, converted.output
    return folder


def other_tokenizer() -> bytes:
    """As many pieces, and another score."""
    from tests.witness.vocabularies import parsed

    model = parsed(tokenizer_model(GQA.vocab))
    model.pieces[-1].score -= 1
    return model.SerializeToString()


@pytest.fixture(autouse=True)
def in_place(place, monkeypatch):
    monkeypatch.chdir(place)


def verify(*words: str, source: bool):
    arguments = ["verify", "--output_dir", "out", *words]
    return CliRunner().invoke(
        main, [*arguments, *(["--input_dir", "in-Instruct"] if source else [])]
    )


def test_every_option_of_the_command_is_in_one_of_the_tables():
    """A new option must be used or refused, and be in a table that proves it."""
    tables = [FRAME, {*ASKED}, {*SOURCE}, {*READING}, OF_RANKS, OF_LLAMA_3]
    params = main.commands["verify"].params
    options = [param.name for param in params if isinstance(param, click.Option)]
    assert sorted(options) == sorted(name for table in tables for name in table)


@pytest.mark.parametrize("source", [True, False])
def test_without_a_word_the_record_says_what_was_asked_for(source):
    """An output converted with --variant base from a folder named Instruct had to be told so."""
    done = verify(source=source)
    assert done.exit_code == 0, done.output
    assert "equals" in done.stdout


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("name", ASKED)
def test_what_was_asked_for_is_compared(name, source):
    """Without the source, "equals" was said of any dtype, variant or context that was named."""
    same, other = ASKED[name]
    assert verify(*same, source=source).exit_code == 0
    differs = verify(*other, source=source)
    assert differs.exit_code == 1, differs.output
    told = [line for line in differs.stdout.splitlines() if f"{RECORD}: options: {name}" in line]
    assert len(told) == 1, differs.stdout


@pytest.mark.parametrize("name", SOURCE)
def test_how_the_source_is_read_is_used_with_it_and_refused_without(name):
    same, other, fact = SOURCE[name]
    assert verify(*same, source=True).exit_code == 0
    used = verify(*other, source=True)
    assert used.exit_code == 1
    assert fact in used.output
    for words in (same, other):
        refused = verify(*words, source=False)
        assert refused.exit_code == 2
        assert f"--{name}" in refused.stderr
        assert refused.stdout == ""


@pytest.mark.parametrize("source", [True, False])
def test_the_way_of_reading_is_used(source, monkeypatch):
    seen = {"io_mode": set(), "workers": set()}
    for module in ("verify.sums", "verify.jobs"):
        spy_on(module, seen, monkeypatch)
    assert verify(source=source).exit_code == 0
    assert seen["io_mode"] == {"auto"}
    assert 3 not in seen["workers"]
    for words in READING.values():
        assert verify(*words, source=source).exit_code == 0
    assert seen["io_mode"] == {"auto", "buffered"}
    assert 3 in seen["workers"]


def spy_on(module: str, seen, monkeypatch) -> None:
    """Look at what a module hands on, and hand it on."""
    import importlib

    inside = importlib.import_module(f"codellama_convert.{module}")
    share_out = inside.share_out

    def share(items, buffers, work, watch):
        seen["workers"].add(len(buffers))
        return share_out(items, buffers, work, watch)

    monkeypatch.setattr(inside, "share_out", share)
    if module == "verify.jobs":
        reader = inside.TensorReader

        def read(index, names, *, io_mode):
            seen["io_mode"].add(io_mode)
            return reader(index, names, io_mode=io_mode)

        monkeypatch.setattr(inside, "TensorReader", read)
        return
    input_file = inside.InputFile

    def opened(path, *, io_mode="auto", error):
        if path.suffix == ".safetensors":
            seen["io_mode"].add(io_mode)
        return input_file(path, io_mode=io_mode, error=error)

    monkeypatch.setattr(inside, "InputFile", opened)


def test_the_help_names_every_option_and_says_that_none_need_be_repeated():
    shown = CliRunner().invoke(main, ["verify", "--help"]).stdout
    for param in main.commands["verify"].params[1:]:  # the first are the folders
        assert isinstance(param, click.Option)
        assert param.opts[0] in shown
    assert "need not be repeated" in shown


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--skip_tokenizer"], Options(skip_tokenizer=True)),
        (["--model_size", "tokenizer_only"], Options(model_size="tokenizer_only")),
        (
            ["--model_size", "tokenizer_only", "--max_position_embeddings", "99"],
            Options(model_size="tokenizer_only", max_position_embeddings=99),
        ),
        (
            ["--model_size", "tokenizer_only", "--variant", "instruct"],
            Options(model_size="tokenizer_only", flavor="instruct"),
        ),
    ],
)
def test_weights_alone_and_a_tokenizer_alone_need_no_word_either(place, tmp_path, words, options):
    """What a tokenizer alone was told of its context was in no record."""
    output = tmp_path / "out"
    converted = CliRunner().invoke(
        main, ["--input_dir", "in-Instruct", "--output_dir", str(output), *words]
    )
    assert converted.exit_code == 0, converted.output
    both = ["verify", "--output_dir", str(output), "--input_dir", "in-Instruct"]
    for arguments in (both, [*both, *words], both[:3]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    job = plan_conversion(place / "in-Instruct", options)
    assert verify_output(output, job).problems == ()


def test_a_library_user_need_not_repeat_the_options_either(place):
    job = plan_conversion(place / "in-Instruct", Options())
    assert job.weights is not None
    assert job.weights.checkpoint.recognised.flavor == "instruct"
    assert verify_output(place / "out", job).problems == ()
    other = plan_conversion(place / "in-Instruct", Options(flavor="chat", dtype=FLOAT16))
    (first, *_) = verify_output(place / "out", other).problems
    assert "chat_template" in first


def test_a_size_that_was_not_asked_for_is_found_by_the_files_too(place, tmp_path):
    options = Options(flavor="base", dtype=FLOAT16)
    convert_checkpoint(place / "in-Instruct", tmp_path / "one", options=options)
    record = json.loads((tmp_path / "one" / RECORD).read_text())
    assert record["options"]["max_shard_size"] == 5_000_000_000
    options = Options(flavor="base", max_shard_bytes=60_000)
    job = plan_conversion(place / "in-Instruct", options)
    found = verify_output(tmp_path / "one", job).problems
    assert [line.split(": ")[0] for line in found] == ["model.safetensors", "conversion.json"]
    assert "model-00001-of-00006.safetensors" in found[0]
    (tmp_path / "one" / RECORD).unlink()
    assert len(verify_output(tmp_path / "one", job).problems) == 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("workers", value) for value in (1.5, -1, 0, True, "2", 257, 10**9)),
        *(("io_mode", value) for value in ("x", "AUTO", None, 1)),
        *(("asked", value) for value in (5, {})),
        *(("weights_only", value) for value in (1, None)),
    ],
)
def test_a_wrong_argument_of_the_library_is_refused_by_its_name(place, name, wrong):
    """Some were a bare TypeError or ValueError; True, 10**9 and io_mode="x" were taken."""
    job = plan_conversion(place / "in-Instruct")
    for source in (None, job):
        with pytest.raises(ConfigError, match=f"^{name} is .*; it must be "):
            verify_output(place / "out", source, **{name: wrong})


@pytest.mark.parametrize(
    "right", [{"workers": 256}, {"workers": None}, {"io_mode": "buffered"}, {"asked": Asked()}]
)
def test_a_right_argument_of_the_library_is_taken(place, right):
    assert verify_output(place / "out", **right).problems == ()


def test_a_plan_needs_no_options(place):
    """It was a TypeError; `convert_checkpoint` needs none either."""
    assert plan_conversion(place / "in-Instruct").options == Options()
    assert plan_conversion(place / "in-Instruct", None).options == Options()


def test_a_context_that_cannot_be_asked_for_is_a_difference(tmp_path):
    """Without a record, what config.json shows was taken for what was asked for: a ConfigError."""
    save_checkpoint(tmp_path / "in", GQA)
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / RECORD).unlink()
    config = tmp_path / "out" / "config.json"
    told = json.loads(config.read_text())
    for context in (1 << 31, told["max_position_embeddings"]):
        config.write_text(json.dumps(told | {"max_position_embeddings": context}))
        found = verify_output(tmp_path / "out", plan_conversion(tmp_path / "in")).problems
        assert any("2147483648" in line for line in found) == (context == 1 << 31), found
