"""Mistakes that are planted in the program: each must be found within some number of cases."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plant:
    """A mistake.

    Attributes:
        spoil: Patches the package, in a child that was just forked.
        within: In so many cases it is found, from the first seed on.
    """

    spoil: Callable[[], None]
    within: int


def _index_among_the_others() -> None:
    """Move what loaders begin with into place among the other files."""
    from codellama_convert.staging import publish

    vars(publish)["entrances"] = lambda *_: []


def _cumulative_sums() -> None:
    """Record for each file what was read for all so far, and let a record replace the others."""
    from codellama_convert.formats import tensor_reader
    from codellama_convert.formats.source_sums import Passes
    from codellama_convert.formats.tensor_reader import TensorReader

    take, note = TensorReader.take_sums, TensorReader.note

    def take_all_sums(self: TensorReader) -> Any:
        note(self, take(self))
        return self._known.shared.sums()

    def replace(self: TensorReader, sums: Any) -> None:
        self._known = Passes(self.index, self._pass_of)
        note(self, sums)

    vars(tensor_reader)["fits"] = lambda *_: True
    for name, method in (("take_sums", take_all_sums), ("note", replace), ("keep", replace)):
        setattr(TensorReader, name, method)


def _unread_ranks() -> None:
    """Keep what was read of a rank without sums, whatever lies there now."""
    from codellama_convert.formats.tensor_reader import TensorReader

    def believe(self: TensorReader, *_: Any) -> bool:
        return True

    TensorReader.confirms = believe


def _unchecked_publishing() -> None:
    """Let a run that finds itself publishing move what is staged, whatever it is now."""
    from codellama_convert.convert import run as convert
    from codellama_convert.staging import folder as output
    from codellama_convert.staging import publish
    from codellama_convert.staging.folder import OutputFolder
    from codellama_convert.staging.part_files import PartFiles
    from codellama_convert.staging.staged import hold_staging, read_staged

    resume, stage, commit = OutputFolder._resume_or_begin, convert._stage, OutputFolder.commit

    def resume_unchecked(self: OutputFolder) -> None:
        held = hold_staging(self._folder)
        staged = None if held is None else read_staged(held, restart=self._wanted.restart)
        if (
            staged is not None
            and staged.publishing
            and staged.fingerprint == self._journal.fingerprint
        ):
            self._held, self._journal = held, staged
            self.parts = PartFiles(held, self._wanted.side)
        else:
            resume(self)

    def stage_unless_done(job: Any, folder: OutputFolder, *args: Any, **kwargs: Any) -> Any:
        if folder._journal.publishing:
            return convert.Written(dict(folder.sealed))
        return stage(job, folder, *args, **kwargs)

    def commit_unless_done(self: OutputFolder) -> None:
        if not self._journal.publishing:
            commit(self)

    def publish_the_rest(staging: Any, folder: Any, names: Collection[str], side: Any) -> None:
        waiting = sorted(staging.names().intersection(names))
        if len(waiting) < len(names):
            vars(publish)["_remove_old_model"] = lambda *_: None
        publish.publish(staging, folder, waiting, side)

    vars(convert)["_stage"], vars(output)["publish"] = stage_unless_done, publish_the_rest
    for name, method in (("_resume_or_begin", resume_unchecked), ("commit", commit_unless_done)):
        setattr(OutputFolder, name, method)


PLANTS = {
    "cumulative-sums": Plant(_cumulative_sums, within=100),
    "index-not-last": Plant(_index_among_the_others, within=100),
    "unchecked-publishing": Plant(_unchecked_publishing, within=100),
    "unread-ranks": Plant(_unread_ranks, within=200),
}
