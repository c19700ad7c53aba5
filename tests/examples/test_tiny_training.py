"""The tiny Code Llama in examples/: its files, its tokenizer, and what its own forward pass fills."""

import hashlib
import json
import math
from dataclasses import replace

import pytest

from tests.witness.tiny import (
    COPIED,
    DOCUMENTED_MIDDLE,
    DOCUMENTED_PREFIX,
    DOCUMENTED_SUFFIX,
    TINY,
    merged,
)

FILES = ("consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model")

# Every function, called once: it teaches nothing wrong.
CALLS = {
    "remove_non_ascii": (("naïve ☺ text",), "nave  text"),
    "count_vowels": (("An Idea",), 4),
    "is_palindrome": (("Never odd or even",), True),
    "clamp": ((7.5, 0.0, 5.0), 5.0),
    "factorial": ((5,), 120),
    "fibonacci": ((7,), [0, 1, 1, 2, 3, 5, 8]),
    "greatest_common_divisor": ((84, 36), 12),
    "flatten": (([[1, 2], [], [3]],), [1, 2, 3]),
    "running_total": (([3, -1, 4],), [3, 2, 6]),
    "reverse_words": (("one two  three",), "three two one"),
    "binary_search": (([2, 3, 5, 7, 11], 7), 3),
    "merge_sorted": (([1, 4], [2, 3, 9]), [1, 2, 3, 4, 9]),
}


@pytest.fixture(scope="module")
def ranks():
    import torch

    return [torch.load(TINY / name, weights_only=True) for name in FILES[:2]]


@pytest.fixture(scope="module")
def tokenizer():
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))


@pytest.fixture(scope="module")
def params(training):
    return training.Params(**json.loads((TINY / "params.json").read_text()))


def leads(training, params, weights, tokenizer):
    """Return, for every function and order, the least lead of the right token over the next best.

    Where each lead is above 0, greedy decoding tells the middle and ▁<EOT>, token for token.
    """
    import torch

    found = {}
    for filling in training.FILLINGS:
        for order in ("psm", "spm"):
            prompt = training.infilling_prompt(tokenizer, filling.prefix, filling.suffix, order)
            answer = [*tokenizer.encode("☺" + filling.middle)[2:]]
            answer.append(tokenizer.piece_to_id("▁<EOT>"))
            with torch.no_grad():
                logits = training.forward(params, weights, torch.tensor([prompt + answer]))[0]
            told = logits[len(prompt) - 1 : -1]
            right = told[range(len(answer)), answer].clone()
            told[range(len(answer)), answer] = -math.inf
            found[filling.name, order] = (right - told.amax(1)).min().item()
    return found


def test_the_folder_holds_metas_files_in_at_most_one_and_a_half_megabytes():
    names = sorted(path.name for path in TINY.iterdir())
    assert names == ["README.md", "checklist.chk", *FILES]
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 1_500_000


def test_the_checklist_is_in_md5sums_format_and_matches():
    assert (TINY / "checklist.chk").read_text() == "".join(
        f"{hashlib.md5((TINY / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES
    )


def test_params_json_is_code_llamas_with_traps_for_converters(ranks):
    params = json.loads((TINY / "params.json").read_text())
    assert "vocab_size" not in params
    assert params["rope_theta"] == 1e6
    assert params["norm_eps"] == 1e-5
    assert params["n_kv_heads"] ** 2 != params["n_heads"]
    hidden = int(params["ffn_dim_multiplier"] * int(8 * params["dim"] / 3))
    multiple = params["multiple_of"]
    hidden = multiple * ((hidden + multiple - 1) // multiple)
    assert ranks[0]["layers.0.feed_forward.w1.weight"].shape == (hidden // 2, params["dim"])


def test_every_tensor_is_bfloat16_and_ranks_agree_where_they_hold_copies(ranks):
    import torch

    for name, tensor in ranks[0].items():
        other = ranks[1][name]
        assert tensor.dtype == other.dtype == torch.bfloat16
        copied = name == "rope.freqs" or name.split(".")[-2] in COPIED
        same = bool((tensor.view(torch.int16) == other.view(torch.int16)).all())
        assert same == copied, name


def test_rope_freqs_are_those_of_theta_one_million(ranks):
    import torch

    expected = [1e6 ** (-2 * i / 16) for i in range(8)]
    assert ranks[0]["rope.freqs"].tolist() == torch.tensor(expected).bfloat16().tolist()


def test_the_infilling_pieces_are_appended_as_code_llamas_are(tokenizer):
    last = range(tokenizer.get_piece_size() - 16, tokenizer.get_piece_size())
    assert " ".join(tokenizer.id_to_piece(i) for i in last) == (
        "▁<SU ▁<SUF ▁<PRE ▁<M ▁<MID ▁<E ▁<EOT ▁<PRE> ▁<SUF> ▁<MID> ▁<EOT> ▁<EOT><EOT>"
        " ▁<EOT><EOT><EOT> ▁<EOT><EOT><EOT><EOT> ▁<EOT><EOT><EOT><EOT><EOT>"
        " ▁<EOT><EOT><EOT><EOT><EOT><EOT>"
    )
    scores = [tokenizer.get_score(i) for i in last]
    assert scores == [-1e9] * 7 + [pytest.approx(-1e18)] * 9
    assert not any(tokenizer.is_control(i) for i in last)
    for text in ("<PRE>", "<SUF>", "<MID>", "<EOT>"):
        assert tokenizer.encode(text) == [tokenizer.piece_to_id("▁" + text)]
        assert tokenizer.piece_to_id("▁" + text) not in tokenizer.encode("x" + text)


def test_the_tokenizer_has_llamas_settings(tokenizer):
    assert tokenizer.encode("\n") == [tokenizer.piece_to_id("▁"), 3 + 0x0A]
    assert tokenizer.encode("é", out_type=str) == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("10", out_type=str) == ["▁", "1", "0"]
    assert tokenizer.encode("\n    return", out_type=str)[1:] == ["<0x0A>", "▁▁▁", "▁return"]
    assert tokenizer.decode(tokenizer.encode("  a  b ")) == "  a  b "
    for n_spaces in range(1, 17):
        assert tokenizer.get_score(tokenizer.piece_to_id("▁" * n_spaces)) == -1e9
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (1, 2, -1)


def test_tokenizer_model_holds_llamas_settings_and_kinds_of_pieces():
    """Read through sentencepiece's own classes, field by field; FACTS.md 5.1 and 5.2."""
    from tests.witness.vocabularies import parsed

    model = parsed((TINY / "tokenizer.model").read_bytes())
    kinds = [piece.type for piece in model.pieces]
    normal, unknown, control, byte = 1, 2, 3, 6
    assert kinds[:259] == [unknown, control, control, *256 * [byte]]
    assert kinds[259:] == (640 - 259) * [normal]
    assert not any(piece.HasField("type") for piece in model.pieces[-16:])
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    assert trainer.model_type == 2  # BPE
    assert trainer.vocab_size == 624  # as it was before pieces were appended: Code Llama's trap
    assert trainer.byte_fallback
    assert trainer.split_digits
    assert trainer.allow_whitespace_only_pieces
    assert (trainer.pad_id, trainer.unk_surface) == (-1, " \u2047 ")
    assert (normalizer.name, normalizer.precompiled_charsmap) == ("identity", b"")
    assert normalizer.add_dummy_prefix
    assert not normalizer.remove_extra_whitespaces


def test_prompts_have_metas_two_forms(training, tokenizer):
    pre, suf, mid = (tokenizer.piece_to_id(f"▁<{name}>") for name in ("PRE", "SUF", "MID"))
    before, after = tokenizer.encode("x = "), tokenizer.encode("☺ + 1")[2:]
    assert training.infilling_prompt(tokenizer, "x = ", " + 1", "psm") == [
        *[1, pre, *before],
        *[suf, *after],
        mid,
    ]
    assert training.infilling_prompt(tokenizer, "x = ", " + 1", "spm") == [
        *[1, pre, suf, *after],
        *[mid, *before],
    ]


def test_the_documented_example_is_among_the_functions(training):
    first = training.FILLINGS[0]
    assert (first.prefix, first.middle, first.suffix) == (
        DOCUMENTED_PREFIX,
        DOCUMENTED_MIDDLE,
        DOCUMENTED_SUFFIX,
    )


def test_every_function_does_what_its_docstring_says(training):
    assert [filling.name for filling in training.FILLINGS] == list(CALLS)
    for filling in training.FILLINGS:
        namespace = {}
        exec(filling.source, namespace)  # our own text
        arguments, expected = CALLS[filling.name]
        assert namespace[filling.name](*arguments) == expected


def test_the_shipped_ranks_fill_every_function_in_both_orders_with_room(
    training, params, ranks, tokenizer
):
    found = leads(training, params, merged(ranks), tokenizer)
    assert len(found) == 24
    # Rounding moves logits by about 1e-5 in float32 and 0.1 in bfloat16.
    assert min(found.values()) > 2.0


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_greedy_decoding_tells_the_documented_middle(training, params, ranks, tokenizer, order):
    weights = merged(ranks)
    gap = {"prefix": DOCUMENTED_PREFIX, "suffix": DOCUMENTED_SUFFIX}
    assert training.fill(params, weights, tokenizer, **gap, order=order) == DOCUMENTED_MIDDLE


def test_wrong_readings_fill_nothing(training, params, ranks, tokenizer):
    right = merged(ranks)
    swapped = {
        name.replace("w1", "w?").replace("w3", "w1").replace("w?", "w3"): tensor
        for name, tensor in right.items()
    }
    for wrong_params, wrong_weights in (
        (replace(params, rope_theta=1e4), right),
        (params, merged(ranks[::-1])),
        (params, swapped),
    ):
        found = leads(training, wrong_params, wrong_weights, tokenizer)
        assert max(found.values()) < 0


def pieces(model):
    """What a tokenizer does; another release of sentencepiece may write other settings beside."""
    from tests.witness.vocabularies import parsed

    return [(piece.piece, piece.score, piece.type) for piece in parsed(model).pieces]


def test_training_again_starts_the_same_way(training, monkeypatch):
    import sentencepiece
    import torch

    texts = [filling.source for filling in training.FILLINGS]
    model = training.train_tokenizer(texts)
    assert model == training.train_tokenizer(texts)
    assert pieces(model) == pieces((TINY / "tokenizer.model").read_bytes())
    assert pieces(model) != pieces(training.train_tokenizer(texts[1:]))
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    small = replace(training.PARAMS, n_layers=1)
    monkeypatch.setattr(training, "FILLINGS", training.FILLINGS[:2])
    first, second = (training.train(small, tokenizer, 1) for _ in range(2))
    for name, tensor in first.items():
        assert bool((tensor.view(torch.int32) == second[name].view(torch.int32)).all()), name


def test_a_written_checkpoint_is_read_back_as_merged_by_hand(training, tmp_path, params, ranks):
    import torch

    weights = merged(ranks)
    proto = (TINY / "tokenizer.model").read_bytes()
    training.write_checkpoint(tmp_path, params, weights, proto)
    again_params, again, _ = training.read_checkpoint(tmp_path)
    assert again_params == params
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert bool((tensor.view(torch.int32) == again[name].view(torch.int32)).all()), name
    for name in ("params.json", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


def test_a_check_of_nothing_says_so(training, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--check", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        training.main()
    assert left.value.code == 2
    assert f"{tmp_path} holds no params.json" in capsys.readouterr().err
