"""What the benchmark is made of: the order of its runs, what it counts, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.examples.running import EXAMPLES, make, needs_linux, script

pytestmark = needs_linux


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


RESULTS = EXAMPLES / "results.json"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def results_with(**series: dict) -> dict:
    """Results as small as they can be."""
    machine = {"cores": 2, "processor": "one", "machine": "x86_64", "memory_bytes": 1,
               "kernel": "6", "versions": {"Python": "3.11"}}  # fmt: skip
    return {"format": 2, "machine": machine, "series": series}


def test_the_page_shows_the_results_beside_it():
    """Its tables were copied by hand, from several runs."""
    from benchmark_results import load
    from benchmark_table import written_between_marks

    results = load(RESULTS)
    assert written_between_marks(PAGE, results) == PAGE
    assert {"disk", "ram", "llama3", "70B", "405B"} <= set(results["series"])
    results["series"]["disk"]["bytes"] *= 2
    assert written_between_marks(PAGE, results) != PAGE


def test_the_page_shows_the_pictures_beside_it():
    shown = {rest.partition(")")[0] for rest in PAGE.split("](pictures/")[1:]}
    assert shown == {path.name for path in (EXAMPLES / "pictures").iterdir()}


def test_a_page_without_a_mark_or_with_two_of_one_is_refused():
    import click
    from benchmark_table import written_between_marks

    results = results_with()
    assert written_between_marks(PAGE, results).count("Not measured.") == 4
    for wrong, n_places in ((PAGE.replace("<!-- sizes -->\n", ""), 0), (PAGE + PAGE, 2)):
        with pytest.raises(click.ClickException, match=f"{n_places} places"):
            written_between_marks(wrong, results)


def test_each_case_runs_as_often_as_is_asked_and_rounds_begin_with_another_one():
    from benchmark_run import in_turns

    assert list(in_turns({"a": 3, "b": 2, "c": 1})) == [
        (0, "a"), (0, "b"), (0, "c"),
        (1, "b"), (1, "a"),
        (2, "a"),
    ]  # fmt: skip
    assert list(in_turns({})) == []


def test_medians_and_their_ratio_leave_outliers_out():
    from benchmark_results import summarize

    runs = [
        {"case": case, "seconds": seconds, "cpu_seconds": 6.0, "peak_rss_bytes": peak,
         "temporary_bytes": 0}
        for case, seconds, peak in (
            ("floor", 2.0, 10), ("convert", 2.5, 60), ("floor", 9.0, 10), ("convert", 3.0, 70),
            ("floor", 1.0, 10), ("convert", 7.0, 65), ("plan", 1.0, 50),
        )
    ]  # fmt: skip
    cases = {"floor": "floor", "convert": "floor", "verify": "floor-read", "plan": ""}
    titled = {name: {"title": name, "floor": floor} for name, floor in cases.items()}
    floor, convert, plan = summarize({"cases": titled, "runs": runs, "bytes": 3 * 10**9})
    assert (floor["seconds"], floor["to_floor"], floor["rounds"]) == (2, 1, 3)
    assert (convert["seconds"], convert["to_floor"], convert["peak_rss_bytes"]) == (3, 1.5, 70)
    assert convert["cpu_per_gb"] == 2
    assert plan["to_floor"] is None


def test_without_fast_zlib_sums_although_zlib_ng_is_installed(tmp_path):
    pytest.importorskip("zlib_ng")
    from benchmark_cases import WITHOUT_FAST

    checkpoint = make(tmp_path / "CodeLlama-tiny", "--size=tiny")
    written = []
    for program, imported in ((("-c", WITHOUT_FAST), False), (("-m", "codellama_convert"), True)):
        out = tmp_path / f"out-{imported}"
        command = [sys.executable, "-v", *program, "convert", "--quiet"]
        done = subprocess.run(
            [*command, checkpoint, out], check=True, capture_output=True, text=True
        )
        assert "import 'codellama_convert.storage.checksums' #" in done.stderr
        assert ("import 'zlib_ng.zlib_ng' #" in done.stderr) is imported
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path):
    import click
    from benchmark_machine import require_space

    require_space(tmp_path, 1, "the series disk")
    with pytest.raises(click.ClickException, match=r"disk takes 1000000000\.0 GB of disk.*free"):
        require_space(tmp_path, 10**18, "the series disk")


def test_more_than_the_memory_or_what_is_not_in_memory_is_refused(monkeypatch, tmp_path):
    import benchmark_machine
    import click

    monkeypatch.setattr(benchmark_machine, "file_system", lambda _: "tmpfs")
    benchmark_machine.require_space(tmp_path, -(1 << 30), "the series ram", in_memory=True)
    with pytest.raises(click.ClickException, match=r"takes 1000000000\.0 GB of memory.*--layers"):
        benchmark_machine.require_space(tmp_path, 10**18, "the series ram", in_memory=True)
    monkeypatch.setattr(benchmark_machine, "file_system", lambda _: "ext4")
    with pytest.raises(click.ClickException, match=r"is on ext4.*not in memory.*--ram_dir"):
        benchmark_machine.require_space(tmp_path, 1, "the series ram", in_memory=True)


def test_the_clock_takes_what_was_measured_for_what_is_left(capsys):
    from benchmark_cases import SERIES, Bench
    from benchmark_clock import MAKING, Clock
    from make_true_size_checkpoint import SIZES

    (ram,) = (one for one in SERIES if one.name == "ram")
    bench = Bench(ram, SIZES["tiny"], EXAMPLES, {"floor": 3, "convert": 1})
    clock = Clock([bench])
    clock.show("ram", MAKING, 5)
    clock.show("ram", "convert", 7)
    clock.show("ram", "floor", 60)
    assert clock.minutes_left() == 2
    clock.show("ram", "floor", 30)
    assert clock.minutes_left() == 0.5
    assert (
        "ram floor: 30.00 s, 60.0 s were expected; about 0.5 minutes left"
        in capsys.readouterr().err
    )


def test_the_results_are_whole_while_they_are_written(tmp_path):
    from benchmark_results import load, save

    save({"format": 2, "series": {}}, tmp_path / "results.json")
    save({"format": 2, "series": {"ram": {}}}, tmp_path / "results.json")
    assert load(tmp_path / "results.json")["series"] == {"ram": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_of_an_older_benchmark_are_refused(tmp_path):
    import click
    from benchmark_results import load

    (tmp_path / "old.json").write_text(json.dumps({"format": 1, "summary": []}))
    with pytest.raises(click.ClickException, match=r"old\.json.*another version"):
        load(tmp_path / "old.json")
    assert script("benchmark.py", "--from", tmp_path / "old.json").returncode == 1


def test_the_measured_peak_is_the_process_s_own(tmp_path):
    """The kernel counts the memory of whoever starts a process into that process's ru_maxrss."""
    import benchmark_meter

    ballast = bytearray(b"x" * (64 << 20))
    command = [sys.executable, "-S", "-c", "import time; time.sleep(0.5)"]
    measured = benchmark_meter.measure("sleep", command, watched=[tmp_path], env={})
    assert 1 << 20 < measured.peak_rss_bytes < len(ballast)
    grown = [sys.executable, "-S", "-c", "b = b'x' * (300 << 20); import time; time.sleep(0.5)"]
    measured = benchmark_meter.measure("grow", grown, watched=[tmp_path], env={})
    assert 300 << 20 < measured.peak_rss_bytes < 360 << 20


def test_a_failing_run_is_reported_with_its_own_last_words(tmp_path):
    import benchmark_meter
    import click

    command = ["/bin/sh", "-c", "echo no such disk >&2; exit 3"]
    for may_refuse in (False, True):
        with pytest.raises(click.ClickException, match=r"(?s)floor: exit 3.*no such disk"):
            benchmark_meter.measure(
                "floor", command, watched=[tmp_path], env={}, may_refuse=may_refuse
            )


def test_a_refused_plan_is_measured_and_any_other_refusal_is_not(tmp_path):
    """`plan` of what no disk at hand can hold ends with 1."""
    import benchmark_meter
    import click

    command = ["/bin/sh", "-c", "exit 1"]
    benchmark_meter.measure("plan", command, watched=[tmp_path], env={}, may_refuse=True)
    with pytest.raises(click.ClickException, match="convert: exit 1"):
        benchmark_meter.measure("convert", command, watched=[tmp_path], env={})


def test_temporary_files_are_seen(tmp_path):
    import benchmark_meter

    code = (
        "head -c 1000000 /dev/zero > $D/tmp && sync $D/tmp && sleep 0.5 && rm $D/tmp && sleep 0.2"
    )
    command = ["/bin/sh", "-c", code]
    measured = benchmark_meter.measure("x", command, watched=[tmp_path], env={"D": str(tmp_path)})
    assert measured.output_bytes == 0
    assert measured.temporary_bytes >= 1_000_000
