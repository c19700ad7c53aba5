"""Own the step from what a user asks to what will be done: options in, a checked job out.

A job has read and checked everything that can be before the first output byte; it is what `plan`
shows and `convert` runs.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert import __version__
from codellama_convert.arguments import as_path, instance_of
from codellama_convert.choices import TOKENIZER_ONLY
from codellama_convert.errors import one_line
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.tiktoken import TiktokenModel
from codellama_convert.formats.tokenizer_model import read_tokenizer_model
from codellama_convert.meta.checklist import ListedSums
from codellama_convert.meta.checkpoint import open_checkpoint
from codellama_convert.meta.find import (
    CheckpointFiles,
    find_files,
    find_tokenizer,
    missing_tokenizer,
)
from codellama_convert.meta.places import model_name
from codellama_convert.model.folder_name import read_folder_name
from codellama_convert.model.marks import Marks
from codellama_convert.model.releases import special_names_of
from codellama_convert.plan.options import Options
from codellama_convert.plan.plan import FilePlan
from codellama_convert.plan.side import HUGGING_FACE, TargetSide
from codellama_convert.plan.tokenizer import TokenizerJob, plan_tokenizer
from codellama_convert.plan.weights import WeightsJob, plan_weights
from codellama_convert.storage.contents import Content
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Progress, Watch

_UNKNOWN_NAMES = (
    "the folder's name does not say which Llama 3 it is: special tokens get the names of Llama 3.1 "
    "and later, such as <|eom_id|>, which Llama 3 does not have"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that was checked and may be run.

    Attributes:
        options: What was asked for.
        given_dir: The folder that was named, which is or holds the one that is read.
        files: The input's files.
        weights: The checkpoint and what is written of it; None where only the tokenizer is
            converted.
        tokenizer: The tokenizer's part; None where it is skipped.
        notes: What the user should know.
    """

    options: Options
    given_dir: Path
    files: CheckpointFiles
    weights: WeightsJob | None
    tokenizer: TokenizerJob | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        # What dataclasses write would list every option and every file.
        return (
            f"Job(input_dir={str(self.files.folder)!r}, weights={self.weights!r}, "
            f"tokenizer={self.tokenizer!r}, n_notes={len(self.notes)})"
        )

    @property
    def input_dir(self) -> Path:
        """The folder that is read."""
        return self.files.folder

    @property
    def input_files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        return self.files.all()

    @property
    def ranks(self) -> tuple[RankIndex, ...]:
        """The checkpoint's ranks; empty where only the tokenizer is converted."""
        return () if self.weights is None else self.weights.checkpoint.ranks

    @property
    def side(self) -> TargetSide:
        """Who loads from the output folder."""
        return HUGGING_FACE

    @property
    def model_name(self) -> str | None:
        """What the weights were recognised as."""
        return None if self.weights is None else self.weights.checkpoint.recognised.name

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """The notes that do not depend on where the input was found."""
        return tuple(note for note in self.notes if note not in self.files.place_notes)

    @property
    def source_notes(self) -> tuple[str, ...]:
        """The notes on what is read, which are all."""
        return self.notes

    @property
    def weight_files(self) -> tuple[FilePlan, ...]:
        """The safetensors files; empty where only the tokenizer is converted."""
        return () if self.weights is None else self.weights.plan.files

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors that are written."""
        return 0 if self.weights is None else self.weights.plan.tensor_bytes

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of the tensors that are left out."""
        return () if self.weights is None else self.weights.checkpoint.dropped

    @property
    def cast(self) -> str | None:
        """Both dtypes where the elements are cast, such as "bfloat16 to float16"."""
        return None if self.weights is None else self.weights.cast

    def fingerprint(self) -> dict[str, Any]:
        """Return what the output's bytes depend on: inputs and options, as plain values."""
        options: dict[str, Any] = {
            "tokenizer_class": None,
            "skip_tokenizer": self.tokenizer is None,
            "max_shard_size": self.options.max_shard_bytes,
        }
        inputs: dict[str, Any] = {}
        for part in (self.tokenizer, self.weights):
            if part is not None:
                options |= part.options()
                inputs |= part.inputs()
        return {"version": __version__, "options": options, **inputs}

    def check_ranks(
        self, progress: Progress | None = None, executor: Executor | None = None
    ) -> tuple[str, ...]:
        """Compare the ranks with Meta's list, which takes minutes, if the options ask for it.

        Args:
            progress: Called with the bytes that were read, from several threads; what it raises
                ends the reading.
            executor: Whose workers read the ranks; None reads on threads of this process.

        Returns:
            A note on each that differs.

        Raises:
            CheckpointError: In strict mode, if one differs; or if one cannot be read.
        """
        if self.options.checksums == "off":
            return ()
        return _sums(self.files, self.options).check_ranks(Watch(progress), executor)

    def small_files(self) -> dict[str, Content]:
        """Build every file beside the weights, by name."""
        content: dict[str, Content] = {}
        if self.tokenizer is not None:
            content |= self.tokenizer.small_files()
        if self.weights is not None:
            marks = self.weights.marks
            if self.tokenizer is not None:
                marks = Marks(self.tokenizer.model.bos_id, self.tokenizer.stop_ids)
            content |= self.weights.small_files(marks)
        return content

    def model_card(self) -> bytes | None:
        """Write the model card; None where only the tokenizer is converted."""
        if self.weights is None:
            return None
        return self.weights.model_card(self.tokenizer.model if self.tokenizer else None)


def plan_conversion(input_dir: str | os.PathLike[str], options: Options | None = None) -> Job:
    """Read and check everything that a conversion needs.

    Args:
        input_dir: The checkpoint's folder, or one that holds it.
        options: What is asked for.

    Returns:
        The job.

    Raises:
        ConvertError: If anything is wrong with the input.
    """
    options = Options() if options is None else options
    instance_of(Options).check("options", options)
    folder = as_path("input_dir", input_dir)
    if options.model_size == TOKENIZER_ONLY:
        return _prepare_tokenizer(folder, options)
    files = find_files(
        folder,
        model_size=options.model_size,
        flavor=options.flavor,
        tokenizer_model=options.tokenizer_model,
    )
    list_notes = _sums(files, options).check_small_files()
    checkpoint = open_checkpoint(
        files,
        model_size=options.model_size,
        flavor=options.flavor,
        max_position_embeddings=options.max_position_embeddings,
        rope_scaling_factor=options.rope_scaling_factor,
        skip_tokenizer=options.skip_tokenizer,
    )
    weights = plan_weights(checkpoint, options)
    notes = list_notes + checkpoint.notes
    tokenizer = None
    if checkpoint.tokenizer is not None:
        tokenizer = plan_tokenizer(checkpoint.tokenizer, options, checkpoint.recognised)
        notes += tokenizer.check()
    return Job(options, folder, files, weights, tokenizer, tuple(map(one_line, notes)))


def _sums(files: CheckpointFiles, options: Options) -> ListedSums:
    return ListedSums(
        files,
        options.checksums,
        skip_tokenizer=options.skip_tokenizer,
        workers=options.workers or default_workers(),
    )


def _prepare_tokenizer(input_dir: Path, options: Options) -> Job:
    path = find_tokenizer(input_dir, input_dir, options.tokenizer_model)
    if path is None:
        raise missing_tokenizer(input_dir, hint="give its path with --tokenizer_model")
    files = CheckpointFiles(input_dir, input_dir / "params.json", (), path, ())
    list_notes = _sums(files, options).check_small_files()
    family, _ = read_folder_name(model_name(input_dir))
    model, names = read_tokenizer_model(path), special_names_of(family)
    tokenizer = plan_tokenizer(model, options, None, names=names)
    notes = list_notes + tokenizer.check()
    if family is None and isinstance(model, TiktokenModel):
        notes += (_UNKNOWN_NAMES,)
    return Job(options, input_dir, files, None, tokenizer, tuple(map(one_line, notes)))
