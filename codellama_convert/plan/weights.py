"""Own the weights' part of a job: a checkpoint, and what is written of it where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.safetensors import INDEX_NAME
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.hugging_face.config_json import config_json, generation_config_json
from codellama_convert.hugging_face.model_card import model_card
from codellama_convert.meta.checkpoint import Checkpoint
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.marks import Marks, released_marks
from codellama_convert.plan.options import Options
from codellama_convert.plan.plan import ConversionPlan, build_plan, fit_plan
from codellama_convert.storage.contents import Content
from codellama_convert.storage.threads import default_workers
from codellama_convert.tensors import Dtype, as_dtype


@dataclass(frozen=True, slots=True, repr=False)
class WeightsJob:
    """The weights of a job.

    Attributes:
        checkpoint: What is read.
        plan: What is written where.
    """

    checkpoint: Checkpoint
    plan: ConversionPlan

    def __repr__(self) -> str:
        # What dataclasses write would be every tensor of the model.
        return (
            f"WeightsJob(model={self.checkpoint.recognised.name!r}, "
            f"dtype={self.plan.dtype.name!r}, n_tensors={len(self.plan.tensors)}, "
            f"n_files={len(self.plan.files)}, tensor_bytes={self.plan.tensor_bytes})"
        )

    @property
    def source_files(self) -> tuple[RankIndex, ...]:
        """The files that are read."""
        return self.checkpoint.ranks

    @property
    def source_dtypes(self) -> tuple[Dtype, ...]:
        """The dtypes of what is read."""
        return self.checkpoint.dtypes

    @property
    def cast(self) -> str | None:
        """Both dtypes where the elements are cast, such as "bfloat16 to float16"."""
        source, target = self.checkpoint.dtype_names, self.plan.dtype.name
        return None if source == target else f"{source} to {target}"

    def options(self) -> dict[str, Any]:
        """Return what was asked for, as a fingerprint has it."""
        recognised = self.checkpoint.recognised
        options: dict[str, Any] = {
            "dtype": self.plan.dtype.name,
            "variant": recognised.flavor,
            "max_position_embeddings": recognised.max_position_embeddings,
        }
        if recognised.rope_scaling_factor is not None:
            options["rope_scaling_factor"] = recognised.rope_scaling_factor
        return options

    @property
    def marks(self) -> Marks:
        """The ids that begin and end a text, where no tokenizer says them."""
        recognised = self.checkpoint.recognised
        return released_marks(
            self.checkpoint.config.vocab_size, recognised.special_names, recognised.flavor
        )

    def inputs(self) -> dict[str, Any]:
        """Return what distinguishes the input files from others, for a fingerprint."""
        return self.checkpoint.inputs()

    def small_files(self, marks: Marks) -> dict[str, Content]:
        """Build the files that describe the weights, by name.

        Args:
            marks: The ids that begin and end a text.

        Returns:
            The configurations, and the index where there are several files.
        """
        config, recognised = self.checkpoint.config, self.checkpoint.recognised
        is_third = config.generation == LLAMA_3
        content: dict[str, Content] = {
            "config.json": config_json(
                config,
                dtype=self.plan.dtype,
                max_position_embeddings=recognised.max_position_embeddings,
                rope_scaling_factor=recognised.rope_scaling_factor,
                bos_token_id=marks.bos_id,
                # Llama 3's has all of them, others end with the one that ends every text.
                eos_token_ids=marks.stop_ids if is_third else marks.stop_ids[:1],
            ),
            "generation_config.json": generation_config_json(
                bos_token_id=marks.bos_id, stop_token_ids=marks.stop_ids
            ),
        }
        if self.plan.index is not None:
            content[INDEX_NAME] = self.plan.index
        return content

    def model_card(self, tokenizer: TokenizerModel | None) -> bytes:
        """Write the model card of a folder with this tokenizer, or without one."""
        return model_card(
            self.checkpoint.config,
            self.checkpoint.recognised,
            tokenizer,
            source_dtype=self.checkpoint.dtype_names,
            dtype=self.plan.dtype,
            n_parameters=self.plan.n_parameters,
            n_ranks=len(self.checkpoint.ranks),
        )


def plan_weights(checkpoint: Checkpoint, options: Options) -> WeightsJob:
    """Decide what is written of a checkpoint where, as the options say.

    Raises:
        ConfigError: If the buffers do not fit into what they may take.
        LayoutError: If the tensors are of several dtypes, and none was asked for.
    """
    dtype = checkpoint.common_dtype() if options.dtype is None else as_dtype(options.dtype)
    workers = options.workers or default_workers()
    if options.tile_bytes is not None:
        plan = build_plan(
            checkpoint.layout,
            dtype=dtype,
            max_shard_bytes=options.max_shard_bytes,
            tile_bytes=options.tile_bytes,
            workers=workers,
        )
    else:
        plan = fit_plan(
            checkpoint.layout,
            dtype=dtype,
            max_shard_bytes=options.max_shard_bytes,
            max_ram_bytes=options.max_ram_bytes,
            workers=workers,
            keep_workers=options.workers is not None,
        )
    return WeightsJob(checkpoint, plan)
