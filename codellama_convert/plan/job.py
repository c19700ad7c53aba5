"""Own the step from what a user asks to what will be done: options in, a checked job out.

A job has read and checked everything that can be before the first output byte; it is what `plan`
shows and `convert` runs. Know nothing of how bytes are moved.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert import __version__
from codellama_convert.arguments import as_path, instance_of
from codellama_convert.errors import one_line
from codellama_convert.formats.safetensors import INDEX_NAME
from codellama_convert.formats.sentencepiece import SentencePieceModel, read_sentencepiece_model
from codellama_convert.hugging_face.config_json import config_json, generation_config_json
from codellama_convert.hugging_face.model_card import model_card
from codellama_convert.meta.checklist import ListedSums
from codellama_convert.meta.checkpoint import Checkpoint, open_checkpoint
from codellama_convert.meta.find import (
    CheckpointFiles,
    find_files,
    find_tokenizer,
    missing_tokenizer,
)
from codellama_convert.model.config import META_BOS_ID, META_EOS_ID
from codellama_convert.plan.options import TOKENIZER_ONLY, Options
from codellama_convert.plan.plan import ConversionPlan, build_plan, fit_plan
from codellama_convert.storage.contents import Content
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Progress, Watch
from codellama_convert.tensors import as_dtype
from codellama_convert.tokenizer.hf_files import (
    DEFAULT_TOKENIZER_CLASS,
    stop_token_ids,
    tokenizer_files,
    tokenizer_notes,
)
from codellama_convert.tokenizer.tokenizer_json import tokenizer_json


@dataclass(frozen=True, slots=True, repr=False)
class Job:
    """A conversion that was checked and may be run.

    Attributes:
        options: What was asked for.
        files: The input's files.
        checkpoint: Its structure; None where only the tokenizer is converted.
        plan: What is written where; None where only the tokenizer is converted.
        tokenizer: tokenizer.model; None where it is skipped.
        notes: What the user should know.
    """

    options: Options
    files: CheckpointFiles
    checkpoint: Checkpoint | None
    plan: ConversionPlan | None
    tokenizer: SentencePieceModel | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        # What dataclasses write would be every tensor of the model and every piece of the vocabulary.
        parts = [f"input_dir={str(self.files.folder)!r}"]
        if self.checkpoint is not None and self.plan is not None:
            parts += [
                f"model={self.checkpoint.recognised.name!r}",
                f"dtype={self.plan.dtype.name!r}",
                f"n_tensors={len(self.plan.tensors)}",
                f"n_files={len(self.plan.files)}",
                f"tensor_bytes={self.plan.tensor_bytes}",
            ]
        n_pieces = None if self.tokenizer is None else self.tokenizer.n_pieces
        return f"Job({', '.join(parts)}, n_pieces={n_pieces}, n_notes={len(self.notes)})"

    def fingerprint(self) -> dict[str, Any]:
        """Tell what the output's bytes depend on: inputs and options, as plain values.

        A rank's zip directory holds the CRC-32 of all it has, so no weight is read for this.
        """
        options: dict[str, Any] = {
            "tokenizer_class": None if self.tokenizer is None else self._tokenizer_class,
            "skip_tokenizer": self.tokenizer is None,
            "max_shard_size": self.options.max_shard_bytes,
        }
        inputs: dict[str, Any] = {}
        if self.tokenizer is not None:
            inputs["tokenizer.model"] = hashlib.sha256(self.tokenizer.raw).hexdigest()
        if self.checkpoint is None or self.plan is None:
            options["variant"] = self.options.flavor
            options["max_position_embeddings"] = self.options.max_position_embeddings
        else:
            options |= {
                "dtype": self.plan.dtype.name,
                "variant": self.checkpoint.recognised.flavor,
                "max_position_embeddings": self.checkpoint.recognised.max_position_embeddings,
            }
            inputs["params.json"] = self.checkpoint.params_sha256
            for rank in self.checkpoint.ranks:
                inputs[rank.path.name] = [rank.n_bytes, rank.directory_sha256, rank.pickle_sha256]
                if any(storage.crc is None for storage in rank.storages.values()):
                    # A directory without sums does not change with the weights.
                    inputs[rank.path.name].append(rank.mtime_ns)
        return {"version": __version__, "options": options, **inputs}

    @property
    def cast(self) -> str | None:
        """Both dtypes where the elements are cast, such as "bfloat16 to float16"."""
        if self.checkpoint is None or self.plan is None:
            return None
        source, target = self.checkpoint.dtype_names, self.plan.dtype.name
        return None if source == target else f"{source} to {target}"

    def check_ranks(self, progress: Progress | None = None) -> tuple[str, ...]:
        """Compare the ranks with Meta's list, which takes minutes, if the options ask for it.

        Args:
            progress: Called with the bytes that were read, from several threads; what it raises
                ends the reading.

        Returns:
            A note on each that differs.

        Raises:
            CheckpointError: In strict mode, if one differs; or if one cannot be read.
        """
        if self.options.checksums == "off":
            return ()
        return _sums(self.files, self.options).check_ranks(Watch(progress))

    def small_files(self) -> dict[str, Content]:
        """Build every file beside the weights, by name."""
        flavor = self.checkpoint.recognised.flavor if self.checkpoint else self.options.flavor
        content: dict[str, Content] = {}
        bos_id = META_BOS_ID
        stop_ids: tuple[int, ...] = (META_EOS_ID,)
        if self.tokenizer is not None:
            content |= tokenizer_files(
                self.tokenizer,
                flavor=flavor,
                tokenizer_class=self._tokenizer_class,
                model_max_length=self._context(),
            )
            bos_id = self.tokenizer.bos_id
            stop_ids = stop_token_ids(self.tokenizer, flavor=flavor)
        if self.checkpoint is not None and self.plan is not None:
            content["config.json"] = config_json(
                self.checkpoint.config,
                dtype=self.plan.dtype,
                max_position_embeddings=self.checkpoint.recognised.max_position_embeddings,
                bos_token_id=bos_id,
                eos_token_id=stop_ids[0],
            )
            content["generation_config.json"] = generation_config_json(
                bos_token_id=bos_id, stop_token_ids=stop_ids
            )
            if self.plan.index is not None:
                content[INDEX_NAME] = self.plan.index
        return content

    def model_card(self) -> bytes | None:
        """Write the model card; None where only the tokenizer is converted."""
        if self.checkpoint is None or self.plan is None:
            return None
        return model_card(
            self.checkpoint.config,
            self.checkpoint.recognised,
            self.tokenizer,
            source_dtype=self.checkpoint.dtype_names,
            dtype=self.plan.dtype,
            n_parameters=self.plan.n_parameters,
            n_ranks=len(self.checkpoint.ranks),
        )

    def _context(self) -> int | None:
        if self.checkpoint is None:
            return self.options.max_position_embeddings
        return self.checkpoint.recognised.max_position_embeddings

    @property
    def _tokenizer_class(self) -> str:
        return self.options.tokenizer_class or DEFAULT_TOKENIZER_CLASS


def plan_conversion(input_dir: str | os.PathLike[str], options: Options) -> Job:
    """Read and check everything that a conversion needs.

    Args:
        input_dir: The checkpoint's folder, or one that holds it.
        options: What is asked for.

    Returns:
        The job.

    Raises:
        ConvertError: If anything is wrong with the input.
    """
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
        skip_tokenizer=options.skip_tokenizer,
    )
    plan = plan_weights(checkpoint, options)
    _refuse_costly(checkpoint.tokenizer)
    notes = list_notes + checkpoint.notes + _tokenizer_notes(checkpoint.tokenizer, options)
    notes = tuple(map(one_line, notes))
    return Job(options, files, checkpoint, plan, checkpoint.tokenizer, notes)


def _sums(files: CheckpointFiles, options: Options) -> ListedSums:
    return ListedSums(
        files,
        options.checksums,
        skip_tokenizer=options.skip_tokenizer,
        workers=options.workers or default_workers(),
    )


def plan_weights(checkpoint: Checkpoint, options: Options) -> ConversionPlan:
    """Decide what is written of a checkpoint where, as the options say.

    Raises:
        ConfigError: If the buffers do not fit into what they may take.
        LayoutError: If the tensors are of several dtypes, and none was asked for.
    """
    dtype = checkpoint.common_dtype() if options.dtype is None else as_dtype(options.dtype)
    workers = options.workers or default_workers()
    if options.tile_bytes is not None:
        return build_plan(
            checkpoint.layout,
            dtype=dtype,
            max_shard_bytes=options.max_shard_bytes,
            tile_bytes=options.tile_bytes,
            workers=workers,
        )
    return fit_plan(
        checkpoint.layout,
        dtype=dtype,
        max_shard_bytes=options.max_shard_bytes,
        max_ram_bytes=options.max_ram_bytes,
        workers=workers,
        keep_workers=options.workers is not None,
    )


def _prepare_tokenizer(input_dir: Path, options: Options) -> Job:
    path = find_tokenizer(input_dir, input_dir, options.tokenizer_model)
    if path is None:
        raise missing_tokenizer(input_dir, hint="give its path with --tokenizer_model")
    files = CheckpointFiles(input_dir, input_dir / "params.json", (), path, ())
    list_notes = _sums(files, options).check_small_files()
    model = read_sentencepiece_model(path)
    notes = tuple(map(one_line, list_notes + _tokenizer_notes(model, options)))
    _refuse_costly(model)
    return Job(options, files, None, None, model, notes)


def _refuse_costly(model: SentencePieceModel | None) -> None:
    """Let a tokenizer whose tokenizer.json costs too much end here, and not while it is written."""
    if model is not None:
        tokenizer_json(model)


def _tokenizer_notes(model: SentencePieceModel | None, options: Options) -> tuple[str, ...]:
    if model is None:
        return ()
    return tokenizer_notes(model, tokenizer_class=options.tokenizer_class)
