"""Own the proof of an output: bit for bit against its source, or against its own record.

It shares with the conversion only the readers and the table: the output's header is parsed here
and by the safetensors library, rows are walked backwards from the output to the ranks, and a cast
is torch's own. Print nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from codellama_convert.errors import VerifyError
from codellama_convert.files import aligned_buffer, first_line
from codellama_convert.input_file import InputFile
from codellama_convert.job import Job
from codellama_convert.output_reader import StoredOutput, json_file, read_output
from codellama_convert.plan import TensorPlan, Tile
from codellama_convert.rank_reader import UNSIGNED, RankReader, Rows
from codellama_convert.rope import to_interleaved
from codellama_convert.tensors import Dtype
from codellama_convert.verify_record import Problems, Progress, VerifyReport, verify_record
from codellama_convert.workers import share_out


def verify_output(
    output_dir: Path, job: Job | None = None, *, progress: Progress | None = None
) -> VerifyReport:
    """Verify an output folder.

    Args:
        output_dir: What was converted.
        job: The source, from `plan_conversion`; None compares with the output's own record.
        progress: Called with the bytes of each tile of the output that was compared.

    Returns:
        What was found.

    Raises:
        ConvertError: If a side cannot be read at all.
    """
    advance = progress or (lambda _: None)
    if job is None:
        return verify_record(output_dir, progress=progress)
    problems = Problems()
    n_tensors = n_bytes = 0
    if job.checkpoint is not None and job.plan is not None:
        found = read_output(output_dir, problems.add)
        comparable = _compare_shapes(job, found, problems)
        _check_config(job, output_dir, comparable, problems)
        n_bytes = _compare_weights(job, comparable, problems, advance)
        n_tensors = len(comparable)
    _check_tokenizer(job, output_dir, problems)
    return VerifyReport(output_dir, "source", n_tensors, n_bytes, tuple(problems.texts))


def _compare_shapes(
    job: Job, found: Mapping[str, StoredOutput], problems: Problems
) -> dict[str, StoredOutput]:
    """Compare names and shapes; give the tensors whose values can be compared."""
    assert job.checkpoint is not None
    wanted = {tensor.spec.name: tensor.spec for tensor in job.checkpoint.layout}
    for name in sorted(set(wanted) - set(found)):
        problems.add(f"tensor {name!r} is missing")
    for name in sorted(set(found) - set(wanted)):
        problems.add(f"{found[name].file.name}: tensor {name!r} is none of this model")
    comparable = {}
    for name in sorted(set(found) & set(wanted)):
        if found[name].shape != wanted[name].shape:
            problems.add(
                f"{found[name].file.name}: tensor {name!r} has shape {found[name].shape}, "
                f"expected {wanted[name].shape}"
            )
        else:
            comparable[name] = found[name]
    dtypes = {one.dtype.name for one in comparable.values()}
    if len(dtypes) > 1:
        problems.add(f"the tensors are of several dtypes: {', '.join(sorted(dtypes))}")
    asked = job.options.dtype
    if asked is not None and dtypes - {asked.name}:
        problems.add(f"the tensors are {', '.join(sorted(dtypes))}, not {asked.name} as asked for")
    return comparable


def _check_config(
    job: Job, folder: Path, stored: Mapping[str, StoredOutput], problems: Problems
) -> None:
    """Compare config.json with params.json and with the tensors, value by value."""
    assert job.checkpoint is not None
    config = job.checkpoint.config
    dtypes = {one.dtype.name for one in stored.values()}
    expected: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": next(iter(dtypes)) if len(dtypes) == 1 else None,
    }
    identity = job.checkpoint.identity
    written = json_file(folder / "config.json")
    context = written.get("max_position_embeddings")
    if identity.context_is_known or type(context) is not int or context <= 0:
        expected["max_position_embeddings"] = identity.max_position_embeddings
    for key, value in expected.items():
        if written.get(key) != value:
            problems.add(f"config.json: {key} is {written.get(key)!r}, expected {value!r}")


def _check_tokenizer(job: Job, folder: Path, problems: Problems) -> None:
    """Compare the tokenizer's pieces, in order, with those of the source."""
    if job.tokenizer is None:
        return
    path = folder / "tokenizer.model"
    try:
        same = path.read_bytes() == job.tokenizer.raw
    except OSError as problem:
        problems.add(f"tokenizer.model: cannot open: {first_line(problem)}")
        return
    if not same:
        problems.add("tokenizer.model is not the source's")
    vocabulary = json_file(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    for number, piece in enumerate(job.tokenizer.pieces):
        if vocabulary.get(piece.text) != number:
            problems.add(
                f"tokenizer.json: piece {piece.text!r} has id {vocabulary.get(piece.text)}, "
                f"expected {number}"
            )
            return
    if len(vocabulary) != len(job.tokenizer.pieces):
        problems.add(
            f"tokenizer.json has {len(vocabulary)} pieces, expected {len(job.tokenizer.pieces)}"
        )


def _compare_weights(
    job: Job, stored: Mapping[str, StoredOutput], problems: Problems, advance: Progress
) -> int:
    """Walk every tensor backwards to the ranks; give the bytes read, of both sides."""
    assert job.checkpoint is not None
    assert job.plan is not None
    plans = [tensor for tensor in job.plan.tensors if tensor.spec.name in stored]
    io_mode = job.options.io_mode
    # A rank's norms are copies that the structure's check compared; each is read here as well.
    with ExitStack() as stack:
        names = [tensor.layout.meta_name for tensor in plans]
        readers = [
            stack.enter_context(RankReader(rank, names, io_mode=io_mode))
            for rank in job.checkpoint.ranks
        ]
        files = {
            path: stack.enter_context(InputFile(path, io_mode=io_mode, error=VerifyError))
            for path in sorted({one.file for one in stored.values()})
        }

        def compare(
            tensor: TensorPlan, pair: tuple[memoryview, memoryview], failed: Callable[[], bool]
        ) -> None:
            del failed  # a tensor is soon read
            one = stored[tensor.spec.name]
            comparer = _TensorComparer(tensor, one, files[one.file], readers)
            difference = comparer.first_difference(*pair, advance)
            if difference is not None:
                problems.add(difference)

        output_tile_bytes = _output_tile_bytes(plans, stored)
        buffers = [
            (aligned_buffer(job.plan.read_tile_bytes), aligned_buffer(output_tile_bytes))
            for _ in range(job.plan.workers)
        ]
        share_out(plans, buffers, compare)
        for reader in readers:
            reader.finish(buffers[0][0])
    return sum(2 * one.n_bytes for one in stored.values())


def _output_tile_bytes(plans: Sequence[TensorPlan], stored: Mapping[str, StoredOutput]) -> int:
    return max(
        (p.tile_rows * p.n_columns * stored[p.spec.name].dtype.itemsize for p in plans), default=1
    )


class _TensorComparer:
    """Compares one tensor of the output with the ranks it came from."""

    def __init__(
        self,
        tensor: TensorPlan,
        stored: StoredOutput,
        file: InputFile,
        readers: Sequence[RankReader],
    ) -> None:
        self._tensor, self._stored = tensor, stored
        self._file, self._readers = file, readers

    def first_difference(
        self, read_buffer: memoryview, output_buffer: memoryview, advance: Progress
    ) -> str | None:
        """Compare tile by tile; describe the first element that differs."""
        tensor = self._tensor
        row_bytes = tensor.n_columns * self._stored.dtype.itemsize
        for tile in tensor.tiles():
            n_bytes = tile.n_rows * row_bytes
            at = self._stored.offset + tile.start_row * row_bytes
            window = self._file.read_window(at, n_bytes, output_buffer)
            written = np.frombuffer(window, UNSIGNED[self._stored.dtype.itemsize])
            written = written.reshape(tile.n_rows, tensor.n_columns)
            for first_column, rank, row, expected in self._parts(tile, read_buffer):
                piece = written[:, first_column : first_column + expected.shape[1]]
                unequal = self._first_unequal(piece, expected)
                if unequal is not None:
                    return self._describe(rank, row, unequal, piece, expected)
            advance(n_bytes)
        return None

    def _first_unequal(self, piece: Rows, expected: Rows) -> tuple[int, int] | None:
        """Find the first element, in the ranks' order, that differs."""
        head_dim = self._tensor.layout.head_dim
        # Back to the order in which the ranks have the rows; a view, so nothing is copied.
        in_order = piece if head_dim is None else to_interleaved(piece, head_dim)
        if np.array_equal(in_order, expected.reshape(in_order.shape)):
            return None
        unequal = in_order.reshape(expected.shape) != expected
        row, column = np.unravel_index(int(unequal.argmax()), unequal.shape)
        return int(row), int(column)

    def _parts(self, tile: Tile, read_buffer: memoryview) -> Iterator[tuple[int, int, int, Rows]]:
        """Yield first column, rank, rank's first row and expected elements, rank by rank."""
        layout = self._tensor.layout
        name = layout.meta_name
        if layout.tp_dim == 0:
            rank, row = divmod(tile.start_row, layout.part_shape[0])
            rows, _ = self._readers[rank].read_rows(name, row, tile.n_rows, read_buffer)
            yield 0, rank, row, self._as_written(rows)
            return
        width = layout.part_shape[1] if len(layout.part_shape) == 2 else 1
        for rank, reader in enumerate(self._readers):
            rows, _ = reader.read_rows(name, tile.start_row, tile.n_rows, read_buffer)
            first_column = rank * width if layout.tp_dim == 1 else 0
            yield first_column, rank, tile.start_row, self._as_written(rows)

    def _as_written(self, rows: Rows) -> Rows:
        """Give what the output must hold: the same bits, or torch's cast of the numbers."""
        source, target = self._tensor.layout.spec.dtype, self._stored.dtype
        if source == target:
            return rows
        import torch  # noqa: PLC0415 - for casts only

        signed = np.dtype(f"<i{source.itemsize}")
        values = torch.from_numpy(rows.view(signed)).view(getattr(torch, source.name))
        cast = values.to(getattr(torch, target.name))
        back = cast.view(torch.int16 if target.itemsize == 2 else torch.int32).numpy()
        expected: Rows = back.view(UNSIGNED[target.itemsize])
        nan = torch.isnan(values).numpy()
        if nan.any():  # torch leaves of them what it likes; they are the quiet one of their sign
            negative = torch.signbit(values).numpy()
            expected[nan & ~negative] = target.quiet_nan_bits
            expected[nan & negative] = target.quiet_nan_bits | 1 << (8 * target.itemsize - 1)
        return expected

    def _describe(
        self, rank: int, first_row: int, at: tuple[int, int], piece: Rows, expected: Rows
    ) -> str:
        """Name the element that differs: by its place in the rank, with both values."""
        head_dim = self._tensor.layout.head_dim
        in_order = piece if head_dim is None else to_interleaved(piece, head_dim)
        found_bits = int(in_order.reshape(expected.shape)[at])
        expected_bits = int(expected[at])
        dtype = self._stored.dtype
        digits = 2 * dtype.itemsize
        return (
            f"{self._stored.file.name}: tensor {self._tensor.spec.name!r} differs from "
            f"{self._tensor.layout.meta_name!r} of {self._readers[rank].index.path.name} at row "
            f"{first_row + at[0]}, column {at[1]}: {_value(found_bits, dtype)} "
            f"(bits {found_bits:0{digits}x}), expected {_value(expected_bits, dtype)} "
            f"(bits {expected_bits:0{digits}x})"
        )


def _value(bits: int, dtype: Dtype) -> str:
    """Write the number that some bits stand for."""
    if dtype.code == "F16":
        (value,) = struct.unpack("<e", struct.pack("<H", bits))
    else:
        wide = bits << 16 if dtype.code == "BF16" else bits
        (value,) = struct.unpack("<f", struct.pack("<I", wide))
    return f"{value:.6g}"
