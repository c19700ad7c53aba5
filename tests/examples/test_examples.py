"""The example scripts, run as a reader would."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from examples.make_tiny_checkpoint import main
from tests.witness.checkpoints import Shape, meta_shapes, rope_freqs, same_bits, split_ranks
from tests.witness.meta_forward import meta_logits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def make(folder: Path, *options: str) -> Path:
    result = CliRunner().invoke(main, [str(folder), *options])
    assert result.exit_code == 0, result.output
    return folder


def complaint(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(main, [str(folder), *options])
    assert result.exit_code == 2
    return result.stderr


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


SETTINGS = [
    ((), Shape(64, 2, 8, 8, 192, 512), 1, torch.bfloat16),
    (
        ("--ranks=2", "--n_kv_heads=4", "--dtype=float32", "--vocab_size=400"),
        Shape(64, 2, 8, 4, 192, 400),
        2,
        torch.float32,
    ),
    (
        ("--ranks=8", "--dim=128", "--n_heads=16", "--n_kv_heads=8", "--dtype=float16",
         "--n_layers=1", "--multiple_of=64", "--ffn_dim_multiplier=1.3", "--infill"),
        Shape(128, 1, 16, 8, 448, 512),
        8,
        torch.float16,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "shape", "n_ranks", "dtype"), SETTINGS)
def test_a_tiny_checkpoint_has_the_tensors_of_its_settings(
    tmp_path, options, shape, n_ranks, dtype
):
    from sentencepiece import SentencePieceProcessor

    folder = make(tmp_path / "tiny", *options)
    paths = sorted(folder.glob("*.pth"))
    assert [path.name for path in paths] == [f"consolidated.{i:02d}.pth" for i in range(n_ranks)]
    empty = {name: torch.empty(size, dtype=dtype) for name, size in meta_shapes(shape).items()}
    ranks = [torch.load(path, weights_only=True) for path in paths]
    for found, wanted in zip(ranks, split_ranks(empty, n_ranks), strict=True):
        freqs = found.pop("rope.freqs")
        assert (freqs.float() - rope_freqs(shape, dtype, 1e6).float()).abs().max() < 1e-3
        assert list(found) == list(wanted)
        for name, tensor in found.items():
            assert (tensor.dtype, tensor.shape) == (dtype, wanted[name].shape)
            assert tensor.isfinite().all()
        assert same_bits(found["norm.weight"], ranks[0]["norm.weight"])
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert tokenizer.get_piece_size() == shape.vocab
    text = "def f(x):\n    return  'é' + x  # 123"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if "--infill" in options:
        prefix, end = (tokenizer.piece_to_id(f"\u2581<{name}>") for name in ("PRE", "EOT"))
        assert (prefix, end) == (shape.vocab - 9, shape.vocab - 6)
        assert tokenizer.id_to_piece(shape.vocab - 1) == "\u2581" + 6 * "<EOT>"
        assert tokenizer.get_score(prefix) == pytest.approx(-1e18)


def test_params_json_is_code_llamas(tmp_path):
    folder = make(tmp_path, "--n_kv_heads=2", "--norm_eps=1e-6", "--rope_theta=10000")
    assert (folder / "params.json").read_text(encoding="utf-8") == (
        '{"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "multiple_of": 32,'
        ' "ffn_dim_multiplier": 1.0, "norm_eps": 1e-06, "rope_theta": 10000}\n'
    )
    assert "n_kv_heads" not in json.loads((make(tmp_path / "mha") / "params.json").read_bytes())


def test_the_same_seed_gives_the_same_bytes_and_any_split_the_same_model(tmp_path):
    one, again = make(tmp_path / "one"), make(tmp_path / "again")
    assert hashes(one) == hashes(again)
    other = make(tmp_path / "other", "--seed=1", "--no_tokenizer")
    assert hashes(other).keys() == {"consolidated.00.pth", "params.json"}
    assert hashes(other)["consolidated.00.pth"] != hashes(one)["consolidated.00.pth"]
    split = make(tmp_path / "split", "--ranks=4")
    whole = torch.load(one / "consolidated.00.pth", weights_only=True)
    freqs = whole.pop("rope.freqs")
    for index, rank in enumerate(split_ranks(whole, 4)):
        found = torch.load(split / f"consolidated.{index:02d}.pth", weights_only=True)
        assert same_bits(found.pop("rope.freqs"), freqs)
        assert all(same_bits(found[name], tensor) for name, tensor in rank.items())


def test_a_tiny_model_gives_finite_logits(tmp_path):
    state = torch.load(make(tmp_path) / "consolidated.00.pth", weights_only=True)
    logits = meta_logits(state, Shape(64, 2, 8, 8, 192, 512), torch.arange(16), rope_theta=1e6)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--ranks=3"], ("--dim 64", "3 ranks")),
        (["--ranks=4", "--n_kv_heads=2"], ("--n_kv_heads 2", "4 ranks")),
        (["--n_kv_heads=3"], ("8 heads", "3 key/value heads")),
        (["--dim=24"], ("dim 24", "8 heads")),
        (["--vocab_size=300"], ("300", "the least")),
        (["--ranks=9"], ("9", "1<=x<=8")),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options, facts):
    message = complaint(tmp_path / "tiny", *options)
    assert all(fact in message for fact in facts), message
    assert not (tmp_path / "tiny").exists()


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    assert str(tmp_path) in complaint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "benchmark", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux")
        ),
        "infill",
        "make_tiny_checkpoint",
        "make_true_size_checkpoint",
    ],
)
def test_every_option_has_underscores_and_answers_to_dashes_too(name, monkeypatch):
    """As the main command's do."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmark"))
    command = import_module(name).main
    context = click.Context(command, **command.context_settings)
    shown = {option: param for param in command.params for option in param.opts}
    assert not [option for option in shown if "-" in option.lstrip("-")]
    for option, param in shown.items():
        if option.startswith("--"):
            value = [] if param.is_flag else ["1"]
            for spelled in (option, f"--{option[2:].replace('_', '-')}"):
                _, rest, found = command.make_parser(context).parse_args([spelled, *value])
                assert (rest, found[0]) == ([], param)


def test_dashes_give_the_same_checkpoint(tmp_path):
    options = ("--n-kv-heads=2", "--vocab-size=400", "--ffn-dim-multiplier=1.3", "--no-tokenizer")
    underscores = (
        "--n_kv_heads=2",
        "--vocab_size=400",
        "--ffn_dim_multiplier=1.3",
        "--no_tokenizer",
    )
    dashed = make(tmp_path / "dashed", *options)
    assert hashes(dashed) == hashes(make(tmp_path / "underscores", *underscores))
    assert hashes(dashed) != hashes(make(tmp_path / "plain", "--no_tokenizer"))


def test_the_script_runs_by_its_path(tmp_path):
    import subprocess

    script = Path(__file__).parents[2] / "examples" / "make_tiny_checkpoint.py"
    command = [sys.executable, str(script), str(tmp_path / "tiny"), "--no_tokenizer"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.endswith("tiny: consolidated.00.pth, params.json\n")
    assert result.stderr == ""
