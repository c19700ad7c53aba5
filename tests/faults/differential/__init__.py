"""A differential test of whole runs: random checkpoints, options, kills and damage, one reference.

    python -m tests.faults.differential --cases 3000 --seed 1

Each case follows from one number. It writes a random checkpoint, converts it once without any
trouble, and then again with trouble: the process dies or is stopped at random calls of the system,
and before the same command resumes, staged files, the journal, files that were moved already, the
source and the options change. The rule:

- exit status 0 means that every bit, every sum and every JSON value is right, and nothing is left;
- anything else means that nothing is half-done: the output folder holds the whole older model, the
  whole new one, or nothing that a loader begins with; and what is said is one line;
- the same command, with the source intact and what the last hint asked for, ends with status 0.

What is right is computed here, from the checkpoint's bytes, without the package. Only `program`
imports it, which runs the command line in forked children, and `plants`, which spoils them.
"""
