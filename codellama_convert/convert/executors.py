"""Own what the workers of an executor are asked for: a job for each file to check or to write."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from codellama_convert.convert.jobs import FileRequest, StagedFile, is_staged_whole, write_file
from codellama_convert.convert.write_pass import FileReport, Pass, file_bytes, tensor_bytes
from codellama_convert.errors import WorkerError
from codellama_convert.plan.job import Job
from codellama_convert.plan.options import Options
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import FileSum
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.executors import done_by
from codellama_convert.storage.watch import Watch


class RemoteWriter:
    """Has passes written by the workers of an executor."""

    def __init__(
        self, executor: Executor, job: Job | ReverseJob, folder: OutputFolder, watch: Watch
    ) -> None:
        """Note the executor and the job; nothing is submitted before `write`."""
        self._executor, self._job, self._folder, self._watch = executor, job, folder, watch

    def write(self, passes: Sequence[Pass]) -> Generator[tuple[Pass, FileReport], None, None]:
        """Have passes written, the largest first.

        Args:
            passes: The files of each.

        Yields:
            Each pass with what was written of it, as it is done. When the next one is asked for,
            what other workers have left of this one is removed.

        Raises:
            WorkerError: If a part is not here as its worker says.
            ConvertError: As of `done_by` and `write_file`.
        """
        by_name = {files[0].name: files for files in sorted(passes, key=file_bytes, reverse=True)}
        token = self._folder.begin_run()
        requests = {name: self._request(files, token) for name, files in by_name.items()}
        end_run = self._folder.end_run
        with closing(
            done_by(self._executor, write_file, requests, self._watch, before_end=end_run)
        ) as reports:
            for name, report in reports:
                files = by_name[name]
                self._refuse_unseen(files, report)
                yield files, report
                for file in files:
                    self._folder.parts.drop_of(file.name)
                self._watch.advance(tensor_bytes(files))

    def look_at_kept(self) -> dict[str, bool | None]:
        """Have the files read that an earlier run left.

        Returns:
            By name, whether each is what its record says; None where its worker cannot read it.

        Raises:
            ConvertError: As of `done_by`.
        """
        if not self._folder.sealed:
            return {}
        token = self._folder.begin_run()
        requests = {
            file.name: StagedFile(
                str(self._folder.path.absolute()), file.name, FileSum(one.n_bytes, one.crc32),
                file.beginning, token,
            )
            for file in self._job.weight_files
            for one in (self._folder.sealed.get(file.name),)
            if one is not None
        }  # fmt: skip
        end_run = self._folder.end_run
        with closing(
            done_by(self._executor, is_staged_whole, requests, self._watch, before_end=end_run)
        ) as found:
            return dict(found)

    def _refuse_unseen(self, files: Pass, report: FileReport) -> None:
        """Refuse parts that are not here, or not yet whole, whatever their worker sees."""
        for part, file in zip(report.parts, files, strict=True):
            try:
                n_bytes = self._folder.parts.n_bytes_of(part)
                found = "" if n_bytes == file.n_bytes else f"it has {n_bytes} bytes here"
            except OSError as problem:
                found = first_line(problem)
            if found:
                raise WorkerError(
                    f"a worker wrote {part} with {file.n_bytes} bytes, but {found}",
                    path=self._folder.staging,
                    hint="do all machines see the same file system under this path?",
                )

    def _request(self, files: Pass, token: str) -> FileRequest:
        return FileRequest(
            input_dir=str(self._job.given_dir.absolute()),
            output_dir=str(self._folder.path.absolute()),
            options=_anywhere(self._job.options),
            fingerprint=self._folder.fingerprint,
            names=tuple(file.name for file in files),
            token=token,
        )


def _anywhere(options: Options | ReverseOptions) -> Options | ReverseOptions:
    """Spell paths so that they do not depend on where a worker was started."""
    if options.tokenizer_model is None:
        return options
    return replace(options, tokenizer_model=Path(options.tokenizer_model).absolute())
