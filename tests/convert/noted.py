"""Own what every checkpoint that is converted with a note must pass: note, bits, record, proof."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from tests.convert.bits import assert_same_bits
from tests.witness.checkpoints import (
    MHA,
    Shape,
    params_json,
    read_output,
    rope_freqs,
    tokenizer_model,
)

State = Mapping[str, object]


def write_ranks(
    folder: Path,
    ranks: Sequence[State],
    shape: Shape = MHA,
    *,
    params: Mapping[str, object] | None = None,
    n_pieces: int | None = None,
) -> Path:
    """Write a checkpoint whose ranks are saved just as they are given."""
    folder.mkdir()
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(params_json(shape, "code_llama", params), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_model(n_pieces or shape.vocab))
    return folder


def assert_converted_with_note(
    source: Path,
    output: Path,
    expected: dict[str, torch.Tensor],
    *facts: str,
    options: Options | None = None,
) -> None:
    """Convert, and compare the bits, the one note in all places, and what verify finds."""
    options = options or Options()
    report = convert_checkpoint(source, output, options=options)
    assert_same_bits(read_output(output), expected)
    job = plan_conversion(source, options)
    recorded = json.loads((output / "conversion.json").read_text(encoding="utf-8"))["notes"]
    for notes in (report.notes, job.notes, recorded):
        told = [note for note in notes if all(fact in note for fact in facts)]
        assert len(told) == 1, notes
    assert verify_output(output, job).problems == ()
    weights = output / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x10
    weights.write_bytes(content)
    assert verify_output(output, job).problems, "a planted difference was not found"


def rotary_buffer(shape: Shape = MHA) -> dict[str, torch.Tensor]:
    """What Meta's releases keep beside the weights; it tells a wrong number of heads."""
    return {"rope.freqs": rope_freqs(shape, torch.bfloat16)}
