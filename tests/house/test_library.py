"""The library as a script calls it: its names, and what the command line would refuse."""

from __future__ import annotations

import ast
import hashlib
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import codellama_convert
from codellama_convert import (
    ConfigError,
    ConversionReport,
    ConvertError,
    Options,
    RunOptions,
    VerifyReport,
    convert_checkpoint,
    plan_conversion,
    plan_reverse,
    reverse_checkpoint,
    verify_output,
)
from codellama_convert.convert.run import run
from tests.witness.checkpoints import GQA, save_checkpoint

NAMES = {
    "CastError", "CheckpointError", "CodeLlamaTokenizer", "ConfigError", "ConversionReport",
    "ConvertError", "Interrupted", "Job", "LayoutError", "Options", "OutputError", "RunOptions",
    "TokenizerError", "VerifyError", "VerifyReport", "convert_checkpoint", "dtype_named",
    "plan_conversion", "verify_output", "reverse_checkpoint", "plan_reverse", "ReverseJob",
    "ReverseOptions", "WorkerError",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("library") / "in", GQA)


def test_every_public_name_is_listed_and_leads_somewhere() -> None:
    """`dir` showed none of them, and then `Any` and `import_module` too, which nobody looks for."""
    assert {*dir(codellama_convert)} == NAMES | {"__version__"}
    assert {*codellama_convert.__all__} == NAMES | {"__version__"}
    for name in NAMES:
        assert getattr(codellama_convert, name).__name__ == name


def test_type_checkers_read_the_names_that_a_script_gets() -> None:
    tree = ast.parse(Path(codellama_convert.__file__).read_bytes())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = set()
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        (alias,) = line.names
        assert alias.asname == alias.name, "no re-export without `as`"
        told.add(alias.name)
        if isinstance(home := getattr(codellama_convert, alias.name), type):
            assert home.__module__ == line.module
    assert told == NAMES


def test_every_kind_of_problem_is_public() -> None:
    from codellama_convert import errors

    kinds = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, Exception)
    }
    assert kinds == {name for name in NAMES if name.endswith("Error")} | {"Interrupted"}


def test_a_problem_is_caught_without_a_library() -> None:
    """A script names the errors before it knows whether it converts."""
    code = (
        "import sys\nfrom codellama_convert import ConvertError, Interrupted, Options, RunOptions\n"
        "heavy = {'sentencepiece', 'numpy', 'torch', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_returned_is_what_is_exported(checkpoint: Path, tmp_path: Path) -> None:
    assert type(convert_checkpoint(checkpoint, tmp_path / "out")) is ConversionReport
    assert type(verify_output(tmp_path / "out")) is VerifyReport


@pytest.mark.parametrize(
    "options", [Options(max_shard_bytes=30_000), Options(model_size="tokenizer_only")]
)
def test_a_job_is_shown_in_a_line_that_can_be_read(options: Options, tmp_path: Path) -> None:
    """A notebook printed half a megabyte: every tensor, and every piece of the vocabulary."""
    source = save_checkpoint(tmp_path / "in", GQA)
    shown = repr(plan_conversion(source, options))
    assert shown.startswith("Job(input_dir=")
    assert shown.endswith(")")
    assert repr(str(source)) in shown
    assert len(shown) < 300 + len(str(source))
    assert "\n" not in shown


def test_a_job_of_ranks_is_a_line_too_and_is_sent_as_it_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    job = plan_reverse(checkpoint)
    assert repr(job).startswith(f"ReverseJob(input_dir={str(checkpoint)!r}, n_ranks=1")
    assert len(repr(job)) < 300 + len(str(checkpoint))
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    run(again, tmp_path / "out")
    assert (tmp_path / "out" / "consolidated.00.pth").exists()


@pytest.mark.parametrize(
    "options",
    [Options(max_shard_bytes=30_000, checksums="warn"), Options(model_size="tokenizer_only")],
)
def test_a_planned_job_is_sent_to_another_process_as_it_is(
    options: Options, checkpoint: Path, tmp_path: Path
) -> None:
    """A callback stood among its options, and no pickle could hold one."""
    job = plan_conversion(checkpoint, options)
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert again != plan_conversion(checkpoint, Options(skip_tokenizer=True))
    run(again, tmp_path / "out")
    assert verify_output(tmp_path / "out", job).problems == ()


def test_the_same_call_twice_does_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """It was refused, where the command line said that all is done."""
    first = convert_checkpoint(checkpoint, tmp_path / "out")
    again = convert_checkpoint(checkpoint, tmp_path / "out")
    assert (first.already_converted, again.already_converted) == (False, True)
    assert (first.kept_bytes, again.kept_bytes) == (0, again.tensor_bytes)
    assert again.files == first.files
    with pytest.raises(ConvertError, match="not empty"):
        convert_checkpoint(checkpoint, tmp_path / "out", options=Options(dtype="float32"))


def test_a_check_before_publishing_looks_at_what_was_published_before_too(
    checkpoint: Path, tmp_path: Path
) -> None:
    looked_at = []
    how = RunOptions(check_staged=lambda _, folder, __: looked_at.append(folder.name))
    for _ in range(2):
        convert_checkpoint(checkpoint, tmp_path / "out", run_options=how)
    assert looked_at == [".codellama-convert.partial", "out"]


def test_ranks_have_no_model_card(checkpoint: Path, tmp_path: Path) -> None:
    """It was passed over in silence."""
    how = RunOptions(model_card=True)
    for call in (
        lambda: reverse_checkpoint(tmp_path / "not read", tmp_path / "out", run_options=how),
        lambda: run(plan_reverse(checkpoint), tmp_path / "out", how),
    ):
        with pytest.raises(ConfigError, match=r"model_card .* and ranks are written"):
            call()
    assert not (tmp_path / "out").exists()
    assert reverse_checkpoint(checkpoint, tmp_path / "out").files
    assert "README.md" in convert_checkpoint(checkpoint, tmp_path / "hf", run_options=how).files


def test_overwriting_is_asked_for_in_the_run_options(checkpoint: Path, tmp_path: Path) -> None:
    """It had a second place, an argument of `convert_checkpoint`."""
    over = RunOptions(overwrite=True, sha256=True)
    for _ in range(2):
        convert_checkpoint(checkpoint, tmp_path / "out", run_options=over)
    with pytest.raises(ConvertError, match="not empty"):
        convert_checkpoint(checkpoint, tmp_path / "out")
    with pytest.raises(TypeError, match="overwrite"):
        convert_checkpoint(checkpoint, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_threads_read_as_were_asked_for(
    workers: int, checkpoint: Path, tmp_path: Path
) -> None:
    """MD5 took the number of cores, and the check against the record four, whatever was asked."""
    source = tmp_path / "in"
    save_checkpoint(source, GQA, n_ranks=4)
    names = [f"consolidated.{rank:02}.pth" for rank in range(4)]
    lines = [f"{hashlib.md5((source / name).read_bytes()).hexdigest()}  {name}" for name in names]
    (source / "checklist.chk").write_text("\n".join(lines) + "\n")
    options = Options(workers=workers, checksums="warn", tile_bytes=1000)
    job = plan_conversion(source, options)
    run(job, tmp_path / "out")
    for read in (
        job.check_ranks,
        lambda progress: verify_output(tmp_path / "out", job, progress=progress),
        lambda progress: verify_output(tmp_path / "out", workers=workers, progress=progress),
        lambda progress: convert_checkpoint(
            source, tmp_path / "again", options=options, progress=progress,
            run_options=RunOptions(overwrite=True),
        ),
    ):  # fmt: skip
        together = Together(workers)
        read(together.progress)
        assert together.n_seen == workers


class Together:
    """Lets nobody continue before a number of threads have reported, and counts all that do."""

    def __init__(self, n_expected: int) -> None:
        self._barrier = threading.Barrier(n_expected, timeout=60)
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    @property
    def n_seen(self) -> int:
        return len(self._seen)

    def progress(self, n_bytes: int) -> None:
        me = threading.get_ident()
        if self._barrier.parties > 1 and me == threading.main_thread().ident:
            return  # what is of one piece needs no thread
        with self._lock:
            is_new = me not in self._seen
            self._seen.add(me)
        if is_new:
            self._barrier.wait()
