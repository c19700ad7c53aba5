"""Own a download with its list of MD5 sums, and what tests do with it."""

from __future__ import annotations

import hashlib

from click.testing import CliRunner

from codellama_convert.cli.commands import main


def write_list(path, folder, names):
    lines = [f"{hashlib.md5((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    path.write_text("".join(lines))


def convert(folder, *more):
    output = folder.with_name("out")
    return CliRunner().invoke(
        main, ["--input_dir", str(folder), "--output_dir", str(output), "--overwrite", *more]
    )


def break_sum(folder, name):
    path = folder / "checklist.chk"
    lines = path.read_text().splitlines()
    broken = ["0" * 32 + line[32:] if line.endswith(name) else line for line in lines]
    assert broken != lines
    path.write_text("\n".join(broken) + "\n")
