"""What belongs in a built sdist or wheel, and what a user installs first; .ci/package asks it.

`python -m tests.house.package FILE...` says what is wrong; `--dependencies` names the requirements.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Wheels of the oldest versions exist for these; later Pythons get the newest.
OLDEST_FOR = ((3, 10), (3, 11))


def dependencies() -> list[str]:
    """Give the dependencies but torch, pinned to the oldest allowed where Python has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text[text.index("\ndependencies = [") :]
    bounds = re.findall(r'"([a-z]+)>=([0-9.]+)"', table[: table.index("\n]")])
    oldest = sys.version_info[:2] in OLDEST_FOR
    return [f"{name}=={bound}" if oldest else name for name, bound in bounds if name != "torch"]


def tracked() -> set[str]:
    """Give the files that belong to the project."""
    command = ["git", "ls-files", "-z"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return set(filter(None, done.stdout.split("\0")))


def complaints(path: Path) -> list[str]:
    """Compare one distribution with the files of the project."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        expected = {name for name in tracked() if name.startswith("codellama_convert/")}
    else:
        with tarfile.open(path) as sdist:
            names = (member.name.partition("/")[2] for member in sdist if member.isfile())
            found = set(names) - {"PKG-INFO"}
        expected = tracked()
    return [
        *(f"{path.name}: {name} is missing" for name in sorted(expected - found)),
        *(f"{path.name}: {name} does not belong in it" for name in sorted(found - expected)),
    ]


def main() -> int:
    """Print complaints, or the dependencies."""
    if sys.argv[1:] == ["--dependencies"]:
        sys.stdout.write("".join(f"{line}\n" for line in dependencies()))
        return 0
    found = [line for name in sys.argv[1:] for line in complaints(Path(name))]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
