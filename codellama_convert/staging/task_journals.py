"""Own the journals of a job array's tasks: one each, which only its task appends to.

A network file system loses what two machines append to one file.
"""

from __future__ import annotations

import os
import re

from codellama_convert.errors import OutputError
from codellama_convert.staging.records import JOURNAL_NAME, Journal, differences, read_journal
from codellama_convert.storage.held_folder import HeldFolder

_NAME = re.compile(r"journal\.[0-9a-f]{8}\.jsonl")


def new_journal_name() -> str:
    """Make a name for the journal of a task; another run of the same one gets another."""
    return f"journal.{os.urandom(4).hex()}.jsonl"


def is_journal(name: str) -> bool:
    """Return whether a file of a staging folder is a journal, of a task or the coordinator's."""
    return name == JOURNAL_NAME or _NAME.fullmatch(name) is not None


def task_journals(staging: HeldFolder) -> list[str]:
    """List the journals of tasks in a staging folder."""
    return sorted(filter(_NAME.fullmatch, staging.names()))


def join_journals(staging: HeldFolder, journal: Journal | None) -> Journal | None:
    """Add what tasks have sealed to a journal; one that sealed nothing is in nobody's way.

    Args:
        staging: The staging folder.
        journal: The coordinator's. Where it holds no work, the first of a task that does says which
            conversion it is.

    Returns:
        What they say together; None where there is none.

    Raises:
        OutputError: If one cannot be read, is not a file of ours, or is of another conversion.
    """
    for name in task_journals(staging):
        other = read_journal(staging, name)
        if other is None or not other.holds_work:
            continue
        if journal is None or not journal.holds_work:
            journal = Journal(other.fingerprint)
        if other.fingerprint != journal.fingerprint:
            named = "; ".join(differences(journal.fingerprint, other.fingerprint))
            raise OutputError(
                f"holds parts of two conversions: {named}",
                path=staging.path,
                hint="to discard both, give --restart to the command without --part",
            )
        journal.sealed |= other.sealed
    return journal
