"""One case: a checkpoint, some troubled runs, and what is wrong with how they ended."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.differential import damage, program
from tests.faults.differential.asked import Asked, change, draw_asked
from tests.faults.differential.expected import RECORD, Expected
from tests.faults.differential.program import EVENTS, Ended, Stop
from tests.faults.differential.reference import expected
from tests.faults.differential.sources import OnDisk, draw_checkpoint
from tests.outputs import LOCK, STAGING, content, loads

_MTIME_NS = 1_700_000_000_000_000_000
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MOST_RUNS = 4
_MOST_TRIES = 5
# What loaders take for a part of the model: none of an older one may stay.
_LOADED = re.compile(
    r".*\.(json|safetensors|jinja|part)|tokenizer\.model|pytorch_model.*\.bin|\..*", re.DOTALL
)
_STRAYS = (
    "chat_template.jinja", "added_tokens.json", "pytorch_model.bin", "extra.safetensors",
    "notes.txt",
)  # fmt: skip


class Wrong(Exception):  # noqa: N818 - the run is wrong, not the test
    """What a run did against the rule."""


@dataclass
class Case:
    """A case in the making.

    Attributes:
        seed: All of it follows from this.
        folder: A new one, for everything.
        plant: A mistake that is planted in what is run.
        story: What was done so far.
        ends: How the runs ended, counted.
    """

    seed: int
    folder: Path
    plant: str | None = None
    story: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._who = random.Random(f"who writes in {self.seed}")
        checkpoint = draw_checkpoint(self._rng)
        self._on_disk = OnDisk.whole(checkpoint)
        self._source = self.folder / checkpoint.folder_name
        self._target = self.folder / "out"
        self._asked = draw_asked(self._rng, checkpoint)
        self._known: list[Expected] = []
        self.story.append(f"{checkpoint.folder_name}: {checkpoint.words}")

    def problem(self) -> str | None:
        """Run the case to its end, or to the first thing that is wrong."""
        try:
            self._run()
        except Wrong as wrong:
            return str(wrong)
        return None

    def _run(self) -> None:
        rng = self._rng
        self._place().write()
        control = self._control()
        asked = self._asked
        if rng.random() < 0.35:
            self._write_older()
            asked = replace(asked, overwrite=rng.random() < 0.9)
        meant = asked
        for turn in range(rng.randint(1, _MOST_RUNS)):
            if turn:
                asked = self._trouble(asked)
            ended = self._run_once(asked, self._draw_stop(control))
            if ended.status == 0 and not asked.overwrite and rng.random() < 0.7:
                break  # one more run would mostly say that all is done
        if not self._on_disk.is_whole():
            self.story.append(self._place().heal())
        self._finish(rng.choice((asked, meant)))

    def _place(self) -> damage.Place:
        ours = frozenset(name for one in self._known for name in one.names)
        return damage.Place(self._source, self._on_disk, self._target, _MTIME_NS, ours)

    def _control(self) -> Ended:
        """Convert without any trouble, to see that the reference is right, and to count calls."""
        wanted = self._expect(self._asked)
        target = self.folder / "control"
        ended = self._start(self._asked, target, None)
        self._judge(ended, wanted, target, {})
        if wanted.refusal is None and ended.status:
            raise Wrong(f"refused: {ended.err.strip()}")
        return ended

    def _write_older(self) -> None:
        """Put another model into the output folder, as some program might have left it."""
        asked = draw_asked(self._rng, self._on_disk.checkpoint)
        older = expected(OnDisk.of_twin(self._on_disk.checkpoint), asked)
        if older.refusal is not None:
            return
        self._target.mkdir()
        for name, raw in older.exact.items():
            (self._target / name).write_bytes(raw)
        for name, value in older.values.items():
            (self._target / name).write_text(json.dumps(value))
        stray = self._rng.choice((*_STRAYS, None, None, None, None))
        if stray is not None:
            (self._target / stray).write_text("{}")
        n_weights = sum(name.endswith(".safetensors") for name in older.exact)
        self.story.append(
            f"an older model of {n_weights} files lies in out" + (f", and {stray}" if stray else "")
        )

    def _expect(self, asked: Asked) -> Expected:
        return expected(self._on_disk.copy(), asked)

    def _trouble(self, asked: Asked) -> Asked:
        """Damage something, or change the options, or both, or neither."""
        rng = self._rng
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            self.story.append(self._place().something(rng))
        asked = replace(asked, restart=False)
        if rng.random() < 0.3:
            asked = change(rng, asked, self._on_disk.checkpoint)
        return asked

    def _draw_stop(self, control: Ended) -> Stop | None:
        rng = self._rng
        if rng.random() < 0.15 or not control.counts:
            return None
        event = rng.choices(EVENTS, (4, 4, 2))[0]
        number = rng.choice(_SIGNALS) if event == "call" else signal.SIGKILL
        return Stop(number, event, rng.randrange(max(1, control.counts[event])))

    # --- a run ------------------------------------------------------------------------------------

    def _start(self, asked: Asked, target: Path, stop: Stop | None) -> Ended:
        arguments = list(asked.arguments(self._source, target))
        by_workers = self._who.random() < 0.3
        ended = program.run(arguments, self.folder, stop, self.plant, by_workers=by_workers)
        shown = shlex.join(arguments).replace(f"{self.folder}/", "")
        how = f"{' by workers' if by_workers else ''}{f', {stop}' if stop else ''}"
        self.story.append(f"run {shown}{how}: exit status {ended.status}")
        self.ends["by workers"] += by_workers
        said = [line for line in ended.err.splitlines() if line[:6] != "note: "]
        if len(said) == 1:
            self.story.append(said[0].replace(f"{self.folder}/", ""))
        return ended

    def _run_once(self, asked: Asked, stop: Stop | None) -> Ended:
        wanted = self._expect(asked)
        self._known.append(wanted)
        before = content(self._target) if self._target.exists() else {}
        ended = self._start(asked, self._target, stop)
        allowed = {0, 1} | ({-stop.signal, 128 + stop.signal} if stop else set())
        if ended.status not in allowed:
            raise Wrong(f"exit status {ended.status}: {ended.err.strip()}")
        self._judge(ended, wanted, self._target, before)
        if ended.status:
            self._refuse_torn(before)
        return ended

    def _judge(
        self, ended: Ended, wanted: Expected, target: Path, before: dict[str, bytes]
    ) -> None:
        """Check what was said and, where all went well, what was left."""
        _judge_words(ended)
        if ended.status:
            self.ends[f"status {ended.status}"] += 1
            return
        self.ends["converted"] += 1
        if wanted.refusal is not None:
            raise Wrong(f"exit status 0, but {wanted.refusal}")
        problems = [*wanted.problems(target)]
        if content(target) == before:  # taken for done: neither weights nor notes were looked at
            problems = [one for one in problems if ".safetensors" not in one and RECORD not in one]
        if ended.out:
            problems += wanted.report_problems(ended.out)
        if problems:
            raise Wrong(f"exit status 0, but {problems[0]}")
        others = {path.name for path in target.iterdir()} - wanted.names
        left = sorted(name for name in others if name not in before or _LOADED.fullmatch(name))
        if left:
            raise Wrong(f"exit status 0, but left: {', '.join(left)}")

    def _refuse_torn(self, before: dict[str, bytes]) -> None:
        """Where something loads, it must be what was there before, or a whole new model."""
        if not loads(self._target):
            self.ends["nothing there"] += 1
            return
        now = content(self._target)
        for files in (now, before):
            files.pop(LOCK, None)
        if now == before:
            self.ends["as before"] += 1
            return
        if any(not list(one.problems(self._target)) for one in self._known if not one.refusal):
            self.ends["new"] += 1
            return
        raise Wrong(f"something loads that is neither old nor new: {', '.join(sorted(now))}")

    # --- the end ----------------------------------------------------------------------------------

    def _finish(self, asked: Asked) -> None:
        """Run the command until it succeeds, doing what its hints ask for."""
        asked = replace(asked, restart=False)
        refusal = self._expect(asked).refusal
        if asked.tokenizer == "only" and any(self._target.glob("*.safetensors")):
            refusal = "a model of another vocabulary may lie there"
        for _ in range(_MOST_TRIES):
            ended = self._run_once(asked, None)
            if refusal is not None:
                return
            if ended.status == 0:
                self._verify(asked)
                return
            asked = self._take_the_hint(asked, ended.err)
        raise Wrong("the same command does not succeed, whatever its hints ask for")

    def _take_the_hint(self, asked: Asked, said: str) -> Asked:
        for stray in _STRAYS:
            if stray in said and (self._target / stray).exists():
                (self._target / stray).unlink()
                return asked
        for flag in ("restart", "overwrite"):
            if f"--{flag}" in said and not getattr(asked, flag):
                return replace(asked, **{flag: True})  # type: ignore[arg-type]
        if "run the same command again" in said:
            return asked
        raise Wrong("the same command does not succeed, nor say how it would")

    def _verify(self, asked: Asked) -> None:
        """Let the program's own `verify` agree, now and then."""
        if self._rng.random() < 0.8:
            return
        other = {"--sha256", "--model_card", "--verify", "--json", "--overwrite", "--restart"}
        arguments = [a for a in asked.arguments(self._source, self._target) if a not in other]
        ended = program.run(["verify", *arguments], self.folder, None, self.plant)
        if ended.status:
            raise Wrong(f"verify does not find it equal: {ended.out.strip()} {ended.err.strip()}")
        if (self._target / STAGING).exists():
            raise Wrong("verify leaves something")


def _judge_words(ended: Ended) -> None:
    """Refuse anything but notes on stderr, and one line that says why nothing was done."""
    if "Traceback" in ended.err:
        raise Wrong(f"a traceback:\n{ended.err}")
    lines = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    if ended.status == 1:
        if len(lines) != 1 or not lines[0].startswith("Error: "):
            raise Wrong(f"exit status 1 with {lines}")
    elif lines and not (len(lines) == 1 and ended.status > 128 and "Interrupted" in lines[0]):
        raise Wrong(f"exit status {ended.status} with {lines}")


def repeat(case: Case) -> str:
    """Spell the command that runs a case again."""
    plant = f" --plant {case.plant}" if case.plant else ""
    return f"python -m tests.faults.differential --cases 1 --seed {case.seed}{plant}"


def lines_of(case: Case, problem: str) -> Iterator[str]:
    """Tell a failed case's story."""
    yield f"case {case.seed}: {problem}"
    yield f"  repeat it: {repeat(case)}"
    for line in case.story:
        yield f"  - {line}"
