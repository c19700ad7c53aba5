"""Verify finds each change of the tokenizer files of Llama 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert import Options, convert_checkpoint, plan_conversion
from codellama_convert.formats.tiktoken import read_tiktoken_model
from codellama_convert.tokenizer.llama3 import llama3_files
from codellama_convert.verify.run import verify_output
from tests.witness.llama3 import TINY, spelled
from tests.witness.vocabularies import write_model


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_model(tmp_path / "in", spelled(TINY))
    options = Options(model_size="tokenizer_only", flavor="instruct")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    (tmp_path / "out" / "conversion.json").unlink()
    return tmp_path / "out"


def told(output: Path) -> list[str]:
    options = Options(model_size="tokenizer_only", flavor="instruct")
    job = plan_conversion(output.parent / "in", options)
    return [line for line in verify_output(output, job).problems if "conversion.json" not in line]


def test_verify_finds_nothing_in_what_was_written(output: Path) -> None:
    assert told(output) == []


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        (b'"ignore_merges": true', b'"ignore_merges": fals', "expected 0x74"),
        (b'"<|eot_id|>"', b'"<|eom_id|>"', "expected 0x74"),
        (b"{1,3}", b"{1,2}", "is 0x32, expected 0x33"),
        (b'"special": true', b'"special": null', "expected 0x74"),
        (b'"aaaa": 260', b'"aaaa": 259', "is 0x35, expected 0x36"),
        (b'"aa a",\n      "a aaa"', b'"a aaa",\n      "aa a"', "'aa a', which belongs further up"),
        (b'      "a aaa",\n', b"", "18 merges, expected 19"),
        (b'      "a aaa",\n', b'      "a aaa",\n' * 2, "'a aaa', which belongs further up"),
        (b'"a aaa"', b'"aaa aa"', "'aaa aa', which does not make a token"),
        (b'"a aaa"', b'"aaaa"', "'aaaa', which does not make a token"),
        (b'"a aaa"', b'"a a a"', "'a a a', which does not make a token"),
        (b'"\xc4\x8a \xc4\x8a"', b'"\\n \\n"', "which does not make a token"),
        (b'"a aaa"', b'["a", "aaa"]', "where a merge belongs"),
        (b"\n  }\n}", b"\n  }\n}\n", "does not end as it should"),
    ],
)
def test_verify_finds_a_change_of_tokenizer_json(output: Path, old, new, fact) -> None:
    path = output / "tokenizer.json"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    (line,) = told(output)
    assert "tokenizer.json" in line
    assert fact in line


def test_verify_finds_a_tokenizer_json_that_is_cut_anywhere(output: Path) -> None:
    """One that ended in front of the vocabulary's end was a traceback: "negative count"."""
    path = output / "tokenizer.json"
    raw = path.read_bytes()
    for n_bytes in (0, 1, 1000, raw.index(b"vocab"), raw.index(b"merges")):
        path.write_bytes(raw[:n_bytes])
        (line,) = told(output)
        assert f"ends after {n_bytes} bytes" in line
    for n_bytes in (raw.index(b'"a aaa"'), len(raw) - 1):
        path.write_bytes(raw[:n_bytes])
        (line,) = told(output)
        assert "does not end as it should" in line


@pytest.mark.parametrize(
    ("name", "old", "new", "fact"),
    [
        ("tokenizer_config.json", b'n": "<|eot_id|>"', b'n": "<|eom_id|>"', "eos_token"),
        ("tokenizer_config.json", b"Fast", b"Slow", "tokenizer_class"),
        ("tokenizer_config.json", b"false", b"true", "clean_up_tokenization_spaces"),
        ("tokenizer_config.json", b"ipython", b"jpython", "chat_template"),
        ("special_tokens_map.json", b"<|eot_id|>", b"<|end_of_text|>", "eos_token"),
        ("tokenizer.model", b" 7\n", b" 8\n", "tokenizer.model differs"),
    ],
)
def test_verify_finds_a_change_of_the_other_files(output: Path, name, old, new, fact) -> None:
    raw = (output / name).read_bytes()
    assert old in raw
    (output / name).write_bytes(raw.replace(old, new, 1))
    assert any(fact in line for line in told(output))


def test_verify_knows_both_sets_of_names(tmp_path: Path) -> None:
    """Only the names of ids differ that no text gives."""
    from codellama_convert.verify.report import Problems
    from codellama_convert.verify.tokenizer.llama3 import check_llama3_tokenizer

    model = read_tiktoken_model(write_model(tmp_path / "in", spelled(TINY)))
    for written in ("3", "3.1"):
        folder = tmp_path / written
        folder.mkdir()
        for name, content in llama3_files(model, flavor="base", names=written).items():
            (folder / name).write_bytes(bytes(content))
        for expected in ("3", "3.1"):
            problems = Problems()
            check_llama3_tokenizer(
                folder, model, context=None, chat=False, names=expected, problems=problems
            )
            assert (problems.lines() == ()) is (written == expected)
