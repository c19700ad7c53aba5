#!/usr/bin/env bash
# Run the whole test suite, with all set-up, on a machine that has Python 3.10 or newer and pip.
#
#   bash tests/run.sh                  # everything
#   bash tests/run.sh -k rope -x       # arguments go to pytest
#
# The suite runs with transformers 5 in .venv; tests marked `transformers` run once more with
# transformers 4 in .venv-transformers4.
set -euo pipefail
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/environment.sh

prepare .venv tests/constraints-transformers5.txt test
prepare .venv-transformers4 tests/constraints-transformers4.txt test

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# The suite waits for the disk thousands of times (fsync); in memory that costs nothing.
free_kib=0
if [[ $OSTYPE == linux* ]]; then
  free_kib=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1 || echo 0)
fi
if ((free_kib > 10 * 1024 * 1024)) && [[ -w /dev/shm ]]; then
  memory=$(mktemp -d /dev/shm/codellama-convert.XXXXXX)
  trap 'rm -rf "$memory"' EXIT
  export PYTEST_DEBUG_TEMPROOT=$memory
fi

failed=0
echo "== Everything, with transformers 5"
.venv/bin/python -m pytest -n auto "$@" || failed=1

echo "== Tests marked transformers, with transformers 4"
status=0
.venv-transformers4/bin/python -m pytest -n auto "$@" -m transformers || status=$?
# Arguments may well select no test that is marked; pytest's status for that is 5.
if ((status != 0 && !(status == 5 && $# > 0))); then failed=1; fi
exit "$failed"
