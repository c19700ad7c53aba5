"""Every damage to an output is a problem of one line or one error, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.cli.commands import main
from codellama_convert.errors import VerifyError
from codellama_convert.tensors import BFLOAT16, FLOAT16
from tests.faults.test_hostile import run_process
from tests.witness.checkpoints import GQA, random_model, save_checkpoint
from tests.witness.vocabularies import model_bytes

MODEL, INDEX, RECORD = "model.safetensors", "model.safetensors.index.json", "conversion.json"
NORM = "model.norm.weight"
SMALL_FILES = (
    "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One checkpoint, converted into one file ("one") and into several ("many")."""
    folder = tmp_path_factory.mktemp("damage")
    save_checkpoint(folder / "in", GQA, n_ranks=2)
    convert_checkpoint(folder / "in", folder / "one")
    convert_checkpoint(folder / "in", folder / "many", options=Options(max_shard_bytes=60_000))
    return folder


@pytest.fixture(scope="module")
def job(place):
    return plan_conversion(place / "in", Options())


@pytest.fixture
def one(place, tmp_path):
    return Path(shutil.copytree(place / "one", tmp_path / "one"))


@pytest.fixture
def many(place, tmp_path):
    return Path(shutil.copytree(place / "many", tmp_path / "many"))


def told(output: Path, job=None) -> list[str]:
    """Verify; give the problems, or the error as the only one."""
    try:
        found = list(verify_output(output, job).problems)
    except VerifyError as problem:
        found = [str(problem)]
    for line in found:
        assert line.isprintable(), line
        assert len(line) < 700 + len(str(output)), line
    return found


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file says, and nothing of how it is spelled; a record gets a right sum again."""
    content = json.loads(path.read_bytes())
    edit(content)
    if path.name == RECORD:
        content["crc32"] = "00000000"
        content["crc32"] = f"{zlib.crc32(spelled(path.name, content)):08x}"
    path.write_bytes(spelled(path.name, content))


def spelled(name: str, content: dict[str, Any]) -> bytes:
    ascii_only, is_long = name in (RECORD, INDEX), name == "tokenizer.json"
    text = json.dumps(content, indent=2, sort_keys=not is_long, ensure_ascii=ascii_only)
    return (text if is_long else f"{text}\n").encode(errors="surrogatepass")


def without_record(output: Path) -> Path:
    """Leave the output to the comparison with the source alone."""
    (output / RECORD).unlink()
    return output


# --- the small files beside the weights -----------------------------------------------------------

CONFIG_KEYS = (
    "architectures", "attention_bias", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pretraining_tp",
    "rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings", "torch_dtype", "use_cache",
    "vocab_size",
)  # fmt: skip
TOKENIZER_CONFIG_KEYS = (
    "add_bos_token", "add_eos_token", "bos_token", "clean_up_tokenization_spaces", "eos_token",
    "legacy", "model_input_names", "model_max_length", "padding_side", "tokenizer_class",
    "unk_token",
)  # fmt: skip
EVERY_KEY = [
    *(("config.json", key) for key in CONFIG_KEYS),
    *(("generation_config.json", key) for key in ("bos_token_id", "eos_token_id")),
    *(("tokenizer_config.json", key) for key in TOKENIZER_CONFIG_KEYS),
    *(("special_tokens_map.json", key) for key in ("bos_token", "eos_token", "unk_token")),
    *(("tokenizer.json", key) for key in ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")),
]  # fmt: skip


def of_another_kind(value: Any) -> Any:
    """Give what Python takes for equal, or nearly so: 1 for true, 2.0 for 2, "x" for "X"."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return True if value == 1 else float(value)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, str):
        return value.swapcase() if value.swapcase() != value else f"{value}0"
    if isinstance(value, list):
        return [*value, "more"]
    return {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(("name", "key"), EVERY_KEY)
def test_every_value_counts_and_so_does_its_type(place, one, job, name, key):
    without_record(one)
    path = one / name
    whole = path.read_bytes()
    assert set(json.loads(whole)) == {k for n, k in EVERY_KEY if n == name}
    change(path, lambda content: content.update({key: of_another_kind(content[key])}))
    found = told(one, job)
    assert any(name in line and key in line for line in found)
    assert len(found) == 1 or key == "model"
    path.write_bytes(whole)
    change(path, lambda content: content.pop(key))
    (line,) = told(one, job)
    assert name in line
    assert key in line


SPELLINGS = [
    lambda raw: b"\xef\xbb\xbf" + raw,
    lambda raw: raw + b"\n",
    lambda raw: raw.rstrip(b"\n") if raw.endswith(b"\n") else raw + b" ",
    lambda raw: raw.replace(b"\n", b"\r\n"),
    lambda raw: raw.replace(b": ", b":", 1),
    lambda raw: raw.replace(b"o", b"\\u006f", 1),
    lambda raw: json.dumps(json.loads(raw)).encode(),
    lambda raw: json.dumps(json.loads(raw), indent=7).encode(),
    lambda raw: json.dumps(dict(reversed(json.loads(raw).items())), indent=2).encode() + b"\n",
]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("name", [n for n in SMALL_FILES if n.endswith("json")])
def test_the_same_values_otherwise_spelled_are_found(one, job, name, spell):
    """A byte order mark in front, which many a JSON reader refuses, was passed over."""
    without_record(one)
    raw = (one / name).read_bytes()
    assert told(one, job) == []
    (one / name).write_bytes(spell(raw))
    (found,) = told(one, job)
    assert found.startswith(f"{name}: the values are right, the spelling is not: ")


@pytest.mark.parametrize("spell", SPELLINGS)
def test_an_index_otherwise_spelled_is_found(many, job, spell):
    without_record(many)
    raw = (many / INDEX).read_bytes()
    assert told(many, job) == []
    (many / INDEX).write_bytes(spell(raw))
    (found,) = told(many, job)
    assert found.startswith(f"{INDEX}: the values are right, the spelling is not: ")


@pytest.mark.parametrize("spell", SPELLINGS)
def test_a_record_otherwise_spelled_is_found_with_and_without_the_source(one, job, spell):
    (one / RECORD).write_bytes(spell((one / RECORD).read_bytes()))
    for found in (told(one, job), told(one)):
        (line,) = found
        assert line.startswith(f"{RECORD}: ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "head_dim", 16),
        ("config.json", "mlp_bias", True),
        ("config.json", "quantization_config", {"bits": 4}),
        ("config.json", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("config.json", "dtype", "float16"),
        ("config.json", "sliding_window", 4),
        ("config.json", "auto_map", {"AutoModelForCausalLM": "evil.Model"}),
        ("config.json", "pad_token_id", 0),
        ("generation_config.json", "do_sample", True),
        ("generation_config.json", "temperature", 0.6),
        ("generation_config.json", "max_new_tokens", 3),
        ("tokenizer_config.json", "tokenizer_class", "LlamaTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "EvilTokenizer"),
        ("tokenizer_config.json", "chat_template", "{{ messages }}"),
        ("tokenizer_config.json", "fill_token", "<FILL_ME>"),
        ("tokenizer_config.json", "add_prefix_space", False),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}),
        ("special_tokens_map.json", "pad_token", "<unk>"),
    ],
)
def test_a_key_that_does_not_belong_there_is_found(one, job, name, key, value):
    assert told(one, job) == []
    change(one / name, lambda content: content.update({key: value}))
    found = told(one, job)
    assert any(name in line and key in line for line in found)
    assert told(one)


def test_without_a_record_a_known_tokenizer_class_is_taken_as_asked_for(one, job):
    without_record(one)
    path = one / "tokenizer_config.json"
    change(path, lambda content: content.update(tokenizer_class="LlamaTokenizer"))
    assert told(one, job) == []
    change(path, lambda content: content.update(tokenizer_class="EvilTokenizer"))
    assert any("EvilTokenizer" in line for line in told(one, job))
    change(path, lambda content: content.pop("tokenizer_class"))
    assert any("PreTrainedTokenizerFast" in line for line in told(one, job))


def name_no_class(folder: Path) -> None:
    """Make of an output what was written before tokenizer_class had a default."""
    path = folder / "tokenizer_config.json"
    change(path, lambda content: content.pop("tokenizer_class"))
    raw = path.read_bytes()
    sums = {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}

    def edit(record: dict[str, Any]) -> None:
        record["options"]["tokenizer_class"] = None
        record["files"]["tokenizer_config.json"] |= sums

    change(folder / RECORD, edit)


def test_an_output_that_names_no_tokenizer_class_passes_by_its_record(one, job):
    """Conversions left the key out before there was a default; their records say so."""
    name_no_class(one)
    assert told(one, job) == []
    assert told(one) == []
    path = one / "tokenizer_config.json"
    change(path, lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))
    assert any("tokenizer_class" in line for line in told(one, job))
    assert told(one)


def swap_merges(content: dict[str, Any], first: int, second: int) -> None:
    merges = content["model"]["merges"]
    merges[first], merges[second] = merges[second], merges[first]


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: swap_merges(c, 5, 6), "merge 6 "),
        (lambda c: swap_merges(c, 0, 20), "merge 1 "),
        (lambda c: c["model"]["merges"].pop(), "30 merges, expected 31"),
        (lambda c: c["model"]["merges"].pop(4), "30 merges, expected 31"),
        (lambda c: c["model"]["merges"].insert(4, c["model"]["merges"][4]), "merge 5 "),
        (lambda c: c["model"]["merges"].append("▁ 銀"), "merge 31 "),
        (lambda c: c["model"]["merges"].append(["▁", "e"]), "merge 31 "),
        (lambda c: c["model"]["merges"].append(None), "merge 31 "),
        (lambda c: c["model"].update(merges={}), "merges are {}"),
        (lambda c: c["model"].update(merges=None), "merges are None"),
        (lambda c: c["model"].update(vocab=[["a", 1]]), "vocab is"),
        (lambda c: c["model"].pop("vocab"), "vocab is None"),
        (lambda c: c["model"]["vocab"].update({"<s>": True}), "'<s>' has id True"),
        (lambda c: c["model"]["vocab"].update({"</s>": 2.0}), "'</s>' has id 2.0"),
        (lambda c: c["model"]["vocab"].update({"銀": 320}), "321 pieces, expected 320"),
        (lambda c: c["model"]["vocab"].pop("</s>"), "'</s>' has id None"),
        (lambda c: c["model"].update(byte_fallback=False), "byte_fallback"),
        (lambda c: c["model"].update(dropout=0.1), "dropout"),
        (lambda c: c["model"].update(type="WordPiece"), "WordPiece"),
        (lambda c: c.update(model=[]), "model is []"),
        (lambda c: c["added_tokens"].pop(), "added_tokens"),
        (lambda c: c["added_tokens"][1].update(lstrip=True), "added_tokens"),
        (lambda c: c["added_tokens"].append(c["added_tokens"][2] | {"id": 320, "content": "<pad>"}), "added_tokens"),
        (lambda c: c["normalizer"]["normalizers"].pop(0), "normalizer"),
        (lambda c: c["post_processor"]["special_tokens"]["<s>"].update(ids=[2]), "post_processor"),
    ],
)  # fmt: skip
def test_whatever_changes_an_id_in_tokenizer_json_is_found(one, job, edit, fact):
    without_record(one)
    change(one / "tokenizer.json", edit)
    (found,) = told(one, job)
    assert fact in found


@pytest.mark.parametrize("name", ["plain", "infilling", "step", "step_control", "stories"])
@pytest.mark.parametrize("tokenizer_class", [None, "CodeLlamaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("flavor", [None, "base", "instruct"])
def test_right_tokenizer_files_of_every_kind_pass(tmp_path, name, tokenizer_class, flavor):
    """Alone and with a record, without one, and with the options named once more or not."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.model").write_bytes(model_bytes(name))
    options = Options(model_size="tokenizer_only", flavor=flavor, tokenizer_class=tokenizer_class)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    plain = plan_conversion(tmp_path / "in", Options(model_size="tokenizer_only"))
    same = plan_conversion(tmp_path / "in", options)
    assert told(tmp_path / "out") == []
    for source in (plain, same):
        assert told(tmp_path / "out", source) == []
    without_record(tmp_path / "out")
    for source in (plain, same):
        assert told(tmp_path / "out", source) == []
    other = Options(model_size="tokenizer_only", flavor="base" if flavor == "instruct" else "chat")
    (found,) = told(tmp_path / "out", plan_conversion(tmp_path / "in", other))
    assert "chat_template" in found


@pytest.mark.parametrize("name", ["mistral", "mistral_infilling", "mistral_step"])
def test_the_merges_of_a_whole_vocabulary_pass_and_two_swapped_do_not(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.model").write_bytes(model_bytes(name))
    options = Options(model_size="tokenizer_only")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    source = plan_conversion(tmp_path / "in", options)
    assert told(tmp_path / "out", source) == []
    change(tmp_path / "out" / "tokenizer.json", lambda c: swap_merges(c, 30_000, 30_001))
    assert any("merge 30001 " in line for line in told(tmp_path / "out", source))


def test_a_dtype_or_context_that_nobody_asked_for_is_found(place, one):
    def with_options(**options: Any) -> list[str]:
        return told(one, plan_conversion(place / "in", Options(**options)))

    assert with_options(dtype=BFLOAT16) == []
    assert with_options(dtype=FLOAT16) == [
        "the tensors are bfloat16, not float16 as asked for",
        'conversion.json: options: dtype is "bfloat16", expected "float16"',
    ]
    assert with_options(max_position_embeddings=16384) == []
    found = with_options(max_position_embeddings=4096)
    assert [line.split(" is ")[0] for line in found] == [
        "config.json: max_position_embeddings",
        "tokenizer_config.json: model_max_length",
        "conversion.json: options: max_position_embeddings",
    ]


def irregular(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 42)
    elif kind == "missing":
        pass
    else:
        path.symlink_to({"dangling": "nowhere", "loop": path.name, "zero": "/dev/zero"}[kind])


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "missing", "dangling", "loop", "zero"])
@pytest.mark.parametrize("name", [*SMALL_FILES, MODEL, RECORD])
def test_what_is_no_file_of_that_kind_is_told_at_once(one, job, name, kind):
    irregular(one / name, kind)
    found = told(one, job)
    assert bool(found) is not (name == RECORD and kind == "missing")
    assert all(name in line for line in found)
    assert any(name in line for line in told(one))


@pytest.mark.parametrize("name", [n for n in SMALL_FILES if n != "tokenizer.model"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 1}',
        b'{"hidden_act": "\\ud800\\u001b[2J"}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b'{"rope_theta": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"architectures": ["' + b"x" * 60_000 + b'"]}',
        b"{}".ljust((1 << 16) + 1),
    ],
)
def test_what_is_not_json_is_told(one, job, name, content):
    (one / name).write_bytes(content)
    assert any(name in line for line in told(one, job))
    assert any(name in line for line in told(one))


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "a\n\x1b[2J.safetensors",
        b"\xff.safetensors",
    ],
)
def test_a_file_that_loaders_may_take_is_found(one, job, name):
    if sys.platform != "linux" and not (isinstance(name, str) and name.isprintable()):
        pytest.skip("such a name is none here")
    (one / "README.md").write_text("what people add")
    assert told(one, job) == told(one) == []
    Path(os.fsdecode(os.path.join(os.fsencode(one), os.fsencode(name)))).write_bytes(b"")  # noqa: PTH118
    assert len(told(one, job)) == len(told(one)) == 1


# --- headers and indices --------------------------------------------------------------------------


def rewrite_header(path: Path, edit: Callable[[bytes], bytes]) -> None:
    raw = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", raw[:8])
    header = edit(raw[8 : 8 + n_bytes])
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + n_bytes :])


def entry(**said: Any) -> Callable[[bytes], bytes]:
    """Change the entry of the last norm."""

    def edit(header: bytes) -> bytes:
        content = json.loads(header)
        content[NORM].update(said)
        return compact(content)

    return edit


def compact(content: Any) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def top(edit: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def run(header: bytes) -> bytes:
        content = json.loads(header)
        edit(content)
        return compact(content)

    return run


def test_a_header_of_1_mib_is_read_and_its_padding_is_seen(one, job):
    """Loaders pass over any padding; it was passed over here too."""
    without_record(one)
    whole = (one / MODEL).read_bytes()
    rewrite_header(one / MODEL, top(lambda _: None))
    assert (one / MODEL).read_bytes() == whole
    assert told(one, job) == []
    for n_bytes in (8, 16, 1 << 20):
        (one / MODEL).write_bytes(whole)
        rewrite_header(one / MODEL, lambda header, n=n_bytes: header + b" " * (n - len(header) % n))
        (found,) = told(one, job)
        assert "not laid out as the safetensors library would" in found


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (entry(data_offsets=[-128, 0]), "no valid shape and offsets"),
        (entry(data_offsets=[0, 128]), "begins at byte"),
        (entry(data_offsets=[43000.0, 43128.0]), "no valid shape and offsets"),
        (entry(data_offsets=[True, 129]), "no valid shape and offsets"),
        (entry(data_offsets=[128, 0]), "has -128 bytes"),
        (entry(data_offsets=[0]), "no valid shape and offsets"),
        (entry(data_offsets=[1 << 70, (1 << 70) + 128]), "no valid shape and offsets"),
        (entry(data_offsets=[1 << 60, (1 << 60) + 128]), "begins at byte"),
        (entry(data_offsets=None), "no valid shape and offsets"),
        (entry(shape=[1 << 62, 1 << 62]), "takes"),
        (entry(shape=[1] * 9), "no valid shape and offsets"),
        (entry(shape="64"), "no valid shape and offsets"),
        (entry(shape=[64.0]), "no valid shape and offsets"),
        (entry(shape=[True, 64]), "no valid shape and offsets"),
        (entry(shape=[[64]]), "no valid shape and offsets"),
        (entry(shape=[63]), "takes 126"),
        (entry(shape=[8, 8]), "shape (8, 8), expected (64,)"),
        (entry(dtype=["BF16"]), "dtype"),
        (entry(dtype="I16"), "dtype 'I16'"),
        (entry(dtype="F32"), "takes 256"),
        (entry(dtype="F16"), "several dtypes"),
        (entry(extra=1), "an unexpected form"),
        (top(lambda c: c.update({NORM: None})), "an unexpected form"),
        (top(lambda c: c.update({NORM: [1]})), "an unexpected form"),
        (top(lambda c: c.pop(NORM)), "accounts for"),
        (top(lambda c: c.pop("lm_head.weight")), "begins at byte"),
        (top(lambda c: c.update({"x\n\x1b": c.pop(NORM)})), "missing"),
        (top(lambda c: c.update({"x" * 100_000: c.pop(NORM)})), "missing"),
        (top(lambda c: c.update({"\ud800": c.pop(NORM)})), "missing"),
        (top(lambda c: c.pop("__metadata__")), "metadata is None"),
        (top(lambda c: c.update(__metadata__=None)), "metadata is None"),
        (top(lambda c: c.update(__metadata__={"format": "tf"})), "'tf'"),
        (top(lambda c: c.update(__metadata__={"format": 1})), "1"),
        (top(lambda c: c.update(__metadata__={"format": "pt", "x": "y" * 100_000})), "metadata"),
        (top(lambda c: c.update(__metadata__=c.pop("__metadata__"))), "not laid out"),
        (lambda h: b"        " + h, "not laid out"),
        (lambda h: h + b" ", "not laid out"),
        (lambda h: h.replace(b"{", b'{"__metadata__":{"format":"tf"},', 1), "twice"),
        (lambda h: h.replace(b"64]", b"NaN]", 1), "NaN"),
        (lambda _: b"[]      ", "not a JSON object"),
        (lambda _: b"\xff" * 8, "not JSON"),
        (lambda _: b"", "no safetensors header"),
        (lambda _: b"[" * 100_000, "nested too deeply"),
        (lambda h: h.ljust((1 << 20) + 8), "implausible header"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_told(one, job, edit, fact):
    rewrite_header(one / MODEL, edit)
    assert any(fact in line for line in told(one, job))
    assert told(one)


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 2000, -1])
def test_a_file_that_was_cut_is_told(one, job, n_bytes):
    path = one / MODEL
    path.write_bytes(path.read_bytes()[:n_bytes])
    (found,) = told(one, job)
    assert "header" in found
    assert told(one) == [found]


def test_one_flipped_bit_anywhere_in_a_header_is_found(one, job):
    """Every bit of the size, of the JSON and of its padding."""
    path = one / MODEL
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    assert whole[end - 1 : end] == b" ", "no padding: another model would have some"
    for bit in range(8 * end):
        damaged = bytearray(whole[:end])
        damaged[bit // 8] ^= 1 << bit % 8
        with path.open("r+b") as file:
            file.write(damaged)
        assert told_of_structure(one, job), bit
    path.write_bytes(whole)
    assert told_of_structure(one, job) == []


def told_of_structure(output: Path, job) -> list[str]:
    """Verify all but the weights, which a header says nothing of."""
    from codellama_convert.verify.folder_reader import read_output
    from codellama_convert.verify.report import Problems
    from codellama_convert.verify.weights import compare_shapes

    problems = Problems()
    try:
        stored = read_output(output, problems.add)
    except VerifyError as problem:
        return [str(problem)]
    compare_shapes(job.checkpoint, stored, problems)
    dtypes = {one.dtype.name for one in stored.values()}
    return [*problems.lines(), *(dtypes - {"bfloat16"})]


F1 = "model-00001-of-00006.safetensors"


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["weight_map"].update(x=[1]), "plain file names"),
        (lambda c: c["weight_map"].update(x={}), "plain file names"),
        (lambda c: c["weight_map"].update(x=None), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"../many/{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x="/etc/passwd"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"..\\many\\{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"C:{F1}"), "plain file names"),
        (lambda c: c["weight_map"].update(x=f"{F1}:stream"), "plain file names"),
        (lambda c: c["weight_map"].update(x=""), "plain file names"),
        (lambda c: c["weight_map"].update(x="."), "plain file names"),
        (lambda c: c["weight_map"].update(x=".."), "plain file names"),
        (lambda c: c["weight_map"].update(x="a\0b"), "plain file names"),
        (lambda c: c["weight_map"].update(x="a" * 256), "plain file names"),
        (lambda c: c["weight_map"].update(x="a" * 255), "No such file"),
        (lambda c: c["weight_map"].update(x="a\nError; all is well\x1b[2J"), "No such file"),
        (lambda c: c["weight_map"].update(x="\ud800"), "file name"),
        (lambda c: c["weight_map"].update(x="config.json"), "header"),
        (lambda c: c.update(weight_map=[]), "plain file names"),
        (lambda c: c.pop("weight_map"), "plain file names"),
        (lambda c: c.update(weight_map={}), "is missing"),
        (lambda c: c["metadata"].update(total_size=266880.0), "266880.0"),
        (lambda c: c["metadata"].update(total_size=266879), "266879"),
        (lambda c: c["metadata"].clear(), "total_size is None"),
        (lambda c: c.update(metadata=[]), "total_size is None"),
    ],
)
def test_an_index_that_lies_is_told(many, job, edit, fact):
    change(many / INDEX, edit)
    assert any(fact in line for line in told(many, job))
    assert told(many)


def test_an_index_with_a_tensor_twice_is_told(many, job):
    text = (many / INDEX).read_text()
    twice = text.replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{F1}",')
    (many / INDEX).write_text(twice)
    (found,) = told(many, job)
    assert "twice" in found


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "dangling"])
def test_a_shard_or_an_index_that_is_no_file_is_told(many, job, kind):
    irregular(many / F1, kind)
    (found,) = told(many, job)
    assert F1 in found
    shutil.copy(many / "model-00002-of-00006.safetensors", many / "spare")
    irregular(many / INDEX, kind)
    (found,) = told(many, job)
    assert INDEX in found or kind == "missing"


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_shards_that_are_links_are_followed(many, job):
    for path in list(many.glob("*.safetensors")):
        path.rename(many.parent / path.name)
        path.symlink_to(many.parent / path.name)
    assert told(many, job) == told(many) == []


# --- the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c.update(files=[]), "files is []"),
        (lambda c: c.pop("files"), "files is None"),
        (lambda c: c.update(tensors=None), "tensors is None"),
        (lambda c: c.pop("source"), "source is None"),
        (lambda c: c.pop("options"), "options is None"),
        (lambda c: c["files"].update({MODEL: None}), MODEL),
        (lambda c: c["files"][MODEL].pop("size"), MODEL),
        (lambda c: c["files"]["config.json"].update(size="568"), "config.json"),
        (lambda c: c["files"]["config.json"].update(size=True), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32=[1]), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32="0"), "config.json"),
        (lambda c: c["files"]["config.json"].update(sha256=1), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32="00000000"), "config.json"),
        (lambda c: c["files"]["config.json"].update(size=1), "config.json"),
        (lambda c: c["files"].update({"/etc/passwd": {"size": 1, "crc32": "0" * 8}}), "not a file name"),
        (lambda c: c["files"].update({"../one/x": {"size": 1, "crc32": "0" * 8}}), "not a file name"),
        (lambda c: c["files"].update({"a\n\ud800": {"size": 1, "crc32": "0" * 8}}), "file name"),
        (lambda c: c["files"].update({"x": {"size": 1, "crc32": "0" * 8}}), "No such file"),
        (lambda c: c["files"].update({"x.safetensors": {"size": 1, "crc32": "0" * 8}}), "of which no tensor is"),
        (lambda c: c["files"].clear(), "lack config.json"),
        (lambda c: c["files"].pop(MODEL), f"lack {MODEL}"),
        (lambda c: c["files"].pop("tokenizer.json"), "lack tokenizer.json"),
        (lambda c: c["tensors"].clear(), "nothing"),
        (lambda c: c["tensors"].pop(NORM), NORM),
        (lambda c: c["tensors"].update(x=c["tensors"][NORM]), "'x'"),
        (lambda c: c["tensors"][NORM].update(shape=None), NORM),
        (lambda c: c["tensors"][NORM].update(shape="64"), NORM),
        (lambda c: c["tensors"][NORM].update(shape=[[64]]), NORM),
        (lambda c: c["tensors"][NORM].update(shape=[32, 2]), NORM),
        (lambda c: c["tensors"][NORM].update(crc32=None), NORM),
        (lambda c: c["tensors"][NORM].update(file="../one/model.safetensors"), NORM),
        (lambda c: c["tensors"][NORM].update(file="config.json"), NORM),
        (lambda c: c["tensors"][NORM].update(dtype="F16"), NORM),
        (lambda c: c["tensors"][NORM].update(size=127), NORM),
    ],
)  # fmt: skip
def test_a_record_that_lies_is_told_with_and_without_the_source(one, job, edit, fact):
    change(one / RECORD, edit)
    assert any(fact in line for line in told(one, job))
    assert any(fact in line for line in told(one))


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["source"]["consolidated.01.pth"].update(crc32="00000000"), "00000000"),
        (lambda c: c["source"]["consolidated.01.pth"].update(size=7), "7 bytes"),
        (lambda c: c["source"].pop("consolidated.01.pth"), "is missing"),
        (lambda c: c["source"].update({"x.pth": {"size": 1, "crc32": "0" * 8}}), "x.pth"),
        (lambda c: c["options"].update(dtype="float32"), "not float32 as asked for"),
        (lambda c: c["options"].update(max_position_embeddings=5), "max_position_embeddings"),
        (lambda c: c["options"].update(tokenizer_class="LlamaTokenizer"), "tokenizer_class"),
        (lambda c: c["options"].update(variant="chat"), "chat_template"),
    ],
)
def test_a_record_that_lies_of_its_source_is_told_beside_it(one, job, edit, fact):
    change(one / RECORD, edit)
    assert any(fact in line for line in told(one, job))


def test_what_differs_from_the_source_is_told_once(one, job):
    """Its record differs from it too, which says less."""
    for name in ("tokenizer_config.json", "generation_config.json"):
        change(one / name, lambda content: content.update(bos_token_id="x", bos_token="x"))
    found = told(one, job)
    assert len(found) == 4
    assert all("bos_token" in line for line in found)
    # A file whose name only ends alike is still held against the record.
    change(one / RECORD, lambda c: c["files"]["config.json"].update(size=1))
    assert len(told(one, job)) == 5


def test_a_sum_of_the_weights_in_a_record_is_compared_without_the_source(one):
    change(one / RECORD, lambda c: c["tensors"][NORM].update(crc32="00000000"))
    (found,) = told(one)
    assert NORM in found
    assert "00000000" in found


NO_EXCEPTION = [
    lambda c: c.update(more=1),
    lambda c: c["files"]["config.json"].update(md5="x"),
    lambda c: c["tensors"][NORM].update(md5="x"),
    lambda c: c["source"]["consolidated.01.pth"].update(sha256="0" * 64),
    lambda c: c["options"].update(more=1),
    lambda c: c["converter"].update(more=1),
]


@pytest.mark.parametrize("edit", NO_EXCEPTION)
def test_what_a_conversion_does_not_write_is_found_in_its_record(one, job, edit):
    """Keys that nobody knows were passed over, as a later version's."""
    change(one / RECORD, edit)
    found = told(one, job)
    assert any("more" in line or "md5" in line or "sha256" in line for line in found)
    assert told(one) == found


def test_a_record_of_a_tokenizer_alone_does_not_cover_a_model(place, one, tmp_path):
    options = Options(model_size="tokenizer_only")
    convert_checkpoint(place / "in", tmp_path / "alone", options=options)
    assert told(tmp_path / "alone") == []
    shutil.copy(one / MODEL, tmp_path / "alone")
    assert told(tmp_path / "alone")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize(
    ("damage", "reports"),
    [
        (lambda o: change(o / "config.json", lambda c: c.update(rope_theta="\ud800\n")), True),
        (lambda o: (o / "config.json").unlink(), True),
        (lambda o: (o / "a\n\x1b.safetensors").write_bytes(b""), True),
        (lambda o: change(o / RECORD, lambda c: c["tensors"].clear()), True),
        (lambda o: rewrite_header(o / MODEL, entry(data_offsets=[0.0, 128.0])), False),
        (lambda o: (o / MODEL).write_bytes(b""), False),
        (lambda o: (o / MODEL).unlink(), False),
        (lambda o: None, None),
    ],
)
def test_the_command_ends_in_a_report_or_in_one_line(
    place, one, damage, reports, with_source, as_json
):
    damage(one)
    arguments = ["verify", "--output_dir", str(one), *(["--json"] * as_json)]
    if with_source:
        arguments += ["--input_dir", str(place / "in")]
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None)
    assert result.exit_code == (0 if reports is None else 1)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    if reports is False:
        assert result.stdout == ""
        (line,) = errors
        assert line.startswith("Error: ")
        return
    assert errors == []
    if as_json:
        described = json.loads(result.stdout)
        assert described["ok"] is (reports is None)
        assert bool(described["problems"]) is bool(reports)
    else:
        *problems, last = result.stdout.splitlines()
        assert bool(problems) is bool(reports)
        assert ("DIFFERS from" in last) is bool(reports)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", RECORD, INDEX, MODEL])
def test_a_million_empty_lists_cost_no_more_than_30_mb(place, one, name):
    """A file of 100 MB, of which json makes 2 GB, was parsed. The control takes 37 MB."""
    n_bytes = 60_000 if name == "config.json" else (1 << 20) - 16
    content = b'{"x":[' + b"[]," * ((n_bytes - 10) // 3) + b"[]]}"
    content += b" " * (-len(content) % 8)
    prefix = struct.pack("<Q", len(content)) if name == MODEL else b""
    (one / name).write_bytes(prefix + content)
    peak_file = one.parent / "peak"
    arguments = ["verify", "--output_dir", str(one), "--input_dir", str(place / "in")]
    outcome = run_process(arguments, peak_file)
    assert outcome.status == 1
    assert "Traceback" not in outcome.stderr
    (kilobytes,) = re.findall(r"(\d+) kB", peak_file.read_text())
    assert int(kilobytes) << 10 < 72 << 20


def test_the_first_problems_are_told_and_how_many_more(one, job):
    def nudge(raw: bytearray) -> None:
        raw[-1] ^= 1

    for name in SMALL_FILES[:3]:
        (one / name).unlink()
    change(one / RECORD, lambda c: [t.update(size=1) for t in c["tensors"].values()])
    found = told(one, job)
    assert len(found) == 21
    assert found[-1] == "... and 4 more"
    assert len(set(found)) == 21


def test_an_infinity_that_a_cast_made_is_no_right_output(tmp_path):
    """The conversion refuses it; another converter's output with it was said to be right."""
    import torch
    from safetensors.torch import load_file, save_file

    state = random_model(GQA, torch.bfloat16, 5)
    state["norm.weight"][3] = 65280.0
    save_checkpoint(tmp_path / "in", GQA, state)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT16))
    job = plan_conversion(tmp_path / "in", Options())
    assert told(without_record(tmp_path / "out"), job) == []
    state["norm.weight"][3] = -99840.0
    shutil.rmtree(tmp_path / "in")
    save_checkpoint(tmp_path / "in", GQA, state)
    tensors = load_file(tmp_path / "out" / MODEL)
    tensors[NORM][3] = -float("inf")
    save_file(tensors, tmp_path / "out" / MODEL, {"format": "pt"})
    (found,) = told(tmp_path / "out", plan_conversion(tmp_path / "in", Options()))
    for fact in (NORM, "row 3", "-inf", "fc00", "finite in the checkpoint"):
        assert fact in found
