"""What begins and ends a text is the tokenizer's to say; only Meta's own have the ids 1 and 2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert import CodeLlamaTokenizer, Options, convert_checkpoint, plan_conversion
from codellama_convert.errors import TokenizerError
from codellama_convert.verify.run import verify_output
from tests.witness.checkpoints import GQA, random_model, save_checkpoint
from tests.witness.texts import infilling_pairs, varied_texts
from tests.witness.vocabularies import model_bytes, processor, trained

# Name, rows of the embedding, the ids that the trainer was asked for, that of <step>.
MODELS = [
    ("ends_first", 916, 0, 1, 2, 915),
    ("ends_later", 916, 2, 3, 0, None),
    ("ends_named", 900, 3, 899, 5, None),
]
NAMES = [name for name, *_ in MODELS]
# Infilling pieces are special for Hugging Face, and are left out of what is decoded.
TEXTS = [text for text in varied_texts() if "<" not in text][::7]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Convert a checkpoint with each of them, for dialogue, into a folder of its name."""
    folder = tmp_path_factory.mktemp("ends")
    for name, n_rows, _, eos, *_ in MODELS:
        shape = replace(GQA, vocab=n_rows)
        source = folder / f"{name}-in"
        state = always_the_end(random_model(shape), eos)
        save_checkpoint(source, shape, state, n_ranks=2, tokenizer=model_bytes(name))
        options = Options(flavor="instruct")
        convert_checkpoint(source, folder / name, options=options)
    return folder


def always_the_end(state, eos: int):
    """Make a model whose next token is always the end: nothing is added to what is embedded."""
    for name, tensor in state.items():
        if name.endswith(("wo.weight", "w2.weight", "output.weight")):
            tensor.zero_()
        elif name in ("tok_embeddings.weight", "norm.weight"):
            tensor.fill_(1)
    state["output.weight"][eos] = 1
    return state


def json_of(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "n_rows", "bos", "eos", "unk", "step"), MODELS)
def test_both_configurations_have_the_ids_of_the_tokenizer(
    place, name, n_rows, bos, eos, unk, step
):
    """They had Meta's 1 and 2: generation began with another token, and never stopped."""
    library = processor(name)
    assert (library.bos_id(), library.eos_id(), library.unk_id()) == (bos, eos, unk)
    config = json_of(place / name, "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (bos, eos)
    assert config["vocab_size"] == n_rows
    assert json_of(place / name, "generation_config.json") == {
        "bos_token_id": bos,
        "eos_token_id": eos if step is None else [eos, step],
    }


@pytest.mark.parametrize(("name", "n_rows", "bos", "eos", "unk", "step"), MODELS)
def test_transformers_begins_and_stops_where_they_say(place, name, n_rows, bos, eos, unk, step):
    del n_rows, unk
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place / name)
    ends = eos if step is None else [eos, step]
    assert (model.config.bos_token_id, model.config.eos_token_id) == (bos, eos)
    assert model.generation_config.eos_token_id == ends
    assert model.generate(max_new_tokens=9, do_sample=False).tolist() == [[bos, eos]]
    model.generation_config.eos_token_id = 7  # the control: another end is never met
    assert model.generate(max_new_tokens=9, do_sample=False).tolist() == [[bos, *[eos] * 9]]


@pytest.mark.parametrize(("name", "n_rows", "bos", "eos", "unk", "step"), MODELS)
def test_the_tokenizers_of_transformers_have_the_ids_of_sentencepiece(
    place, name, n_rows, bos, eos, unk, step
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / name)
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert (*found, len(tokenizer)) == (bos, eos, unk, n_rows)
    plain = processor(name).encode(TEXTS)
    assert tokenizer(TEXTS)["input_ids"] == [[bos, *ids] for ids in plain]
    assert tokenizer("a", "b")["input_ids"] == [
        *tokenizer("a")["input_ids"],
        *tokenizer("b")["input_ids"],
    ]
    whole = [[bos, *ids, eos] for ids in plain]
    assert tokenizer.batch_decode(whole, skip_special_tokens=True) == processor(name).decode(plain)
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    prompt = list(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
    assert prompt[0] == bos
    ends = [n for n in prompt if n in (bos, eos, step)]
    assert ends == ([bos, eos, bos] if step is None else [bos, step, step, step, step])


@pytest.mark.parametrize(("name", "n_rows", "bos", "eos", "unk", "step"), MODELS)
def test_our_tokenizer_has_them_too(place, name, n_rows, bos, eos, unk, step):
    tokenizer = CodeLlamaTokenizer.from_pretrained(place / name)
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert (*found, tokenizer.step_id, len(tokenizer)) == (bos, eos, unk, step, n_rows)
    plain = processor(name).encode(TEXTS)
    assert tokenizer(TEXTS)["input_ids"] == [[bos, *ids] for ids in plain]
    restored = tokenizer.batch_decode([[bos, *ids, eos] for ids in plain], skip_special_tokens=True)
    assert restored == processor(name).decode(plain)
    padded = tokenizer(["a", "a b c d"], padding=True)["input_ids"]
    assert padded[0][0] == eos
    if tokenizer.prefix_id is None:
        return
    for prefix, suffix in infilling_pairs()[::9]:
        prompt = tokenizer.infilling_prompt(prefix, suffix)
        assert prompt[:2] == [bos, tokenizer.prefix_id]
        filling = processor(name).encode(suffix)
        assert tokenizer.decode_infilling([*filling, eos, *filling]) == (
            tokenizer.decode_infilling(filling)
        )


@pytest.mark.parametrize("name", NAMES)
def test_verify_compares_with_the_tokenizer(place, name):
    """It compared with Meta's 1 and 2 too, so that both were wrong alike."""
    job = plan_conversion(place / f"{name}-in", Options(flavor="instruct"))
    assert verify_output(place / name, job).problems == ()
    for file in ("config.json", "generation_config.json"):
        path = place / name / file
        whole = path.read_bytes()
        path.write_text(json.dumps(json.loads(whole) | {"bos_token_id": 1, "eos_token_id": 2}))
        found = verify_output(place / name, job).problems
        path.write_bytes(whole)
        for key in ("bos_token_id", "eos_token_id"):
            assert any(file in line and key in line for line in found), (file, key)


def test_where_the_tokenizer_is_skipped_the_ids_are_metas(place, tmp_path):
    options = Options(skip_tokenizer=True)
    convert_checkpoint(place / "ends_first-in", tmp_path / "out", options=options)
    assert json_of(tmp_path / "out", "generation_config.json") == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = json_of(tmp_path / "out", "config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    job = plan_conversion(place / "ends_first-in", options)
    assert verify_output(tmp_path / "out", job).problems == ()


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_tokenizer_without_one_converts_as_weights_alone_only(tmp_path, role):
    shape = replace(GQA, vocab=900)
    save_checkpoint(tmp_path / "in", shape, tokenizer=trained(**{f"{role}_id": -1}))
    with pytest.raises(TokenizerError, match=f"no {role} piece"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")
    options = Options(skip_tokenizer=True)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_the_end_is_always_next_by_construction():
    """The fixture's own control: another row of the output is all zeros."""
    state = always_the_end(random_model(GQA), 5)
    assert state["output.weight"].sum(1).nonzero().flatten().tolist() == [5]
    assert torch.equal(state["norm.weight"], torch.ones(64, dtype=torch.bfloat16))
