"""Own the running of a plan: tiles from the source's files into the output's; print nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

from codellama_convert.arguments import FUNCTION, as_path, instance_of, or_none
from codellama_convert.convert.finished import clear_up, find_finished
from codellama_convert.convert.record import record_json
from codellama_convert.convert.report import ConversionReport, report_on
from codellama_convert.convert.weights import WeightWriter, Written
from codellama_convert.errors import OutputError
from codellama_convert.hugging_face.model_card import CARD_NAME
from codellama_convert.meta.checklist import CHECKLIST_NAME, checklist
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job, plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.plan.ranks.job import ReverseJob, plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.run_options import RunOptions, refuse_unused
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.occupied import holds_a_card
from codellama_convert.staging.resume import Wanted
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.storage.contents import Content
from codellama_convert.storage.digests import file_digests
from codellama_convert.storage.folders import refuse_inputs
from codellama_convert.storage.watch import Progress, Watch


def convert_checkpoint(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    options: Options | None = None,
    run_options: RunOptions | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> ConversionReport:
    """Convert a Meta checkpoint into a Hugging Face folder.

    Args:
        input_dir: The checkpoint's folder, or one that holds it.
        output_dir: The new folder.
        options: What to write, and how.
        run_options: How to treat the output folder, and what to do besides.
        progress: Called with the bytes of each tile that was written, from several threads; with an
            executor, of each file.
        executor: Whose workers write the files, one each; they need the same folders under the same
            paths. None writes on threads of this process.

    Returns:
        What was done.

    Raises:
        ConvertError: If anything is wrong; nothing half-done is left that loads.
    """
    or_none(FUNCTION).check("progress", progress)
    or_none(instance_of(Executor)).check("executor", executor)
    target, chosen = _check_run(output_dir, run_options)
    asked = Options() if options is None else options
    instance_of(Options).check("options", asked)
    refuse_unused(asked, chosen)
    return run(
        plan_conversion(input_dir, asked), target, chosen, watch=Watch(progress), executor=executor
    )


def reverse_checkpoint(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    options: ReverseOptions | None = None,
    run_options: RunOptions | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> ConversionReport:
    """Write Meta's layout of a folder of either side.

    Args:
        input_dir: A Hugging Face folder, or one of Meta's, which gets another number of ranks.
        output_dir: The new folder.
        options: What to write, and how.
        run_options: How to treat the output folder, and what to do besides.
        progress: Called with the bytes of each tile that was written, from several threads; with an
            executor, of each file.
        executor: Whose workers write the files, one each; they need the same folders under the same
            paths. None writes on threads of this process.

    Returns:
        What was done.

    Raises:
        ConvertError: If anything is wrong; nothing half-done is left that loads.
    """
    or_none(FUNCTION).check("progress", progress)
    or_none(instance_of(Executor)).check("executor", executor)
    target, chosen = _check_run(output_dir, run_options)
    asked = ReverseOptions() if options is None else options
    instance_of(ReverseOptions).check("options", asked)
    refuse_unused(asked, chosen)
    return run(
        plan_reverse(input_dir, asked), target, chosen, watch=Watch(progress), executor=executor
    )


def _check_run(
    output_dir: str | os.PathLike[str], run_options: RunOptions | None
) -> tuple[Path, RunOptions]:
    """Refuse what is wrong with the arguments before the input is read, which takes a while."""
    chosen = RunOptions() if run_options is None else run_options
    instance_of(RunOptions).check("run_options", chosen)
    return as_path("output_dir", output_dir), chosen


def run(
    job: Job | ReverseJob,
    output_dir: str | os.PathLike[str],
    run_options: RunOptions | None = None,
    *,
    watch: Watch | None = None,
    executor: Executor | None = None,
) -> ConversionReport:
    """Run a prepared conversion, or resume it where an earlier run stopped.

    Args:
        job: From `plan_conversion` or `plan_reverse`.
        output_dir: The new folder.
        run_options: How to treat it.
        watch: Whom each tile that was written is reported to, and what may stop the run.
        executor: Whose workers write the files; None writes on threads of this process.

    Returns:
        What was done, which is nothing where the folder holds the result of the same conversion.

    Raises:
        Interrupted: If the watch asked to stop; what is whole is kept.
        ConvertError: If anything is wrong; nothing half-done is left that loads.
    """
    instance_of(Job, ReverseJob).check("job", job)
    or_none(instance_of(Watch)).check("watch", watch)
    or_none(instance_of(Executor)).check("executor", executor)
    output_dir, chosen = _check_run(output_dir, run_options)
    refuse_unused(job.options, chosen)
    refuse_inputs(output_dir, job.input_dir, job.input_files)
    hint = f"run the same command again to resume, or delete {output_dir / STAGING_NAME}"
    watch = replace(watch or Watch(), hint=hint)
    finished = find_finished(output_dir, job, chosen)
    if finished is None:
        return _convert(job, output_dir, chosen, watch, executor)
    if chosen.check_staged is not None:
        chosen.check_staged(job, output_dir, watch)
    clear_up(output_dir)
    return finished


def _convert(
    job: Job | ReverseJob,
    output_dir: Path,
    chosen: RunOptions,
    watch: Watch,
    executor: Executor | None,
) -> ConversionReport:
    small_files = job.small_files()
    sizes = file_sizes(job, small_files, with_card=chosen.model_card)
    wanted = Wanted(
        job.fingerprint(),
        sizes,
        overwrite=chosen.overwrite,
        restart=chosen.restart,
        side=job.side,
        watch=watch,
    )
    with OutputFolder(output_dir, wanted) as folder:
        check_source = chosen.check_source or partial(_check_ranks, executor=executor)
        job = replace(job, notes=job.notes + check_source(job, watch))
        write = WeightWriter(job, folder, watch, executor)
        written = _stage(job, folder, chosen, small_files=small_files, write=write, watch=watch)
        folder.commit()
        names = folder.publish()
    notes = (*job.notes, *_restored_notes(job, written))
    if isinstance(job, Job):  # ranks have no card
        notes = (*notes, *_old_card_notes(output_dir, names))
    return report_on(
        job,
        output_dir,
        names,
        written.sealed,
        kept_bytes=written.kept_bytes,
        direct=written.direct,
        notes=notes,
    )


def _restored_notes(job: Job | ReverseJob, written: Written) -> tuple[str, ...]:
    """Say whether the ranks that were written are those that the record of the source speaks of."""
    if isinstance(job, Job) or job.weights.recorded is None:
        return ()
    crcs = {name: one.crc32 for name, one in written.sealed.items()}
    return tuple(job.weights.recorded.notes_on(job.weight_files, crcs))


def _old_card_notes(output_dir: Path, names: Collection[str]) -> tuple[str, ...]:
    """Say so if a card of an earlier conversion stays: it may have been edited, so it is kept."""
    if CARD_NAME in names:
        return ()
    note = f"{CARD_NAME} comes from an earlier conversion; --model_card replaces it"
    return (note,) if holds_a_card(output_dir) else ()


def _stage(
    job: Job | ReverseJob,
    folder: OutputFolder,
    chosen: RunOptions,
    *,
    small_files: Mapping[str, Content],
    write: WeightWriter,
    watch: Watch,
) -> Written:
    """Bring everything into the staging folder, and check it there as far as was asked for."""
    # The small files first: the disk must have room for them too, and not an hour later.
    small_sums = {name: folder.add(name, content) for name, content in small_files.items()}
    card = job.model_card() if chosen.model_card else None
    if card is not None:  # for people, who may edit it: not in the record
        folder.add(CARD_NAME, card)
    written = write.all_files()
    digests = partial(
        file_digests, folder.staging, error=OutputError, watch=replace(watch, progress=None),
        executor=write.executor,
    )  # fmt: skip
    if isinstance(job, ReverseJob) and job.options.checklist:
        listed = sorted({*written.sealed, *small_sums})
        md5s = digests(listed, "md5")
        small_sums[CHECKLIST_NAME] = folder.add(CHECKLIST_NAME, checklist(md5s))
    names = {*written.sealed, *small_sums}
    record = record_json(
        job, written.sealed, small_sums, written.rank_crcs, notes=job.lasting_notes,
        sha256s=digests(names, "sha256") if chosen.sha256 else None,
    )  # fmt: skip
    folder.add(RECORD_NAME, record)
    if chosen.check_staged is not None:
        chosen.check_staged(job, folder.staging, watch)
    watch.check()  # for the last time: from here on it goes out
    return written


def _check_ranks(job: Job | ReverseJob, watch: Watch, executor: Executor | None) -> tuple[str, ...]:
    # Nothing is written yet that would be progress.
    return job.check_ranks(replace(watch, progress=None).advance, executor)
